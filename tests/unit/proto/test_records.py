"""What the store may hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proto.numbers import LIVES_MAX
from proto.scaling import Desired, Scaled
from proto.workers import ModelCard, Record, WorkerRecord


@pytest.mark.parametrize("record", [WorkerRecord, ModelCard, Desired, Scaled])
def test_every_number_has_bounds_that_64_bits_hold(record: type[Record]) -> None:
    """Whoever reads one puts it into a column or a message, and must not fail there."""
    numbers = list(_numbers(record.model_json_schema(), record.__name__))
    assert numbers
    for where, schema in numbers:
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), where
        assert schema.get("maximum", 1 << 64) <= LIVES_MAX, where


def _numbers(schema: object, where: str) -> Iterator[tuple[str, dict[str, int]]]:
    if isinstance(schema, list):
        for each in schema:
            yield from _numbers(each, where)
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield where, schema
        for name, each in schema.items():
            yield from _numbers(each, f"{where}.{name}")
