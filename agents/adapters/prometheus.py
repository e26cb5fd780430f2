"""The few families that an adapter needs of an engine's metrics, without parsing the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(text: str, families: frozenset[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of each sample of these families, in Prometheus' text format."""
    for line in text.splitlines():
        family = line[: _end_of_name(line)]
        if family in families:
            yield family, dict(_LABEL.findall(line)), float(line[line.rindex(" ") :])


def _end_of_name(line: str) -> int:
    brace = line.find("{")
    return brace if brace >= 0 else line.find(" ")
