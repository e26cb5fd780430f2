"""Makes bad input from good: bytes that are changed, and values that are out of the question."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

EXTREMES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 255, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63),
    0.0, -0.0, 0.1, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", "x", "\x00", "é" * 40, "a" * 5_000, "../..", "*", ">", "a.b",
    b"", b"\xff" * 9, b"\x00" * 64, [], {}, [[]], {"": None}, [0] * 300,
)  # fmt: skip
JSON_EXTREMES = tuple(each for each in EXTREMES if not isinstance(each, bytes))
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xC0, 0xC1, 0xD9, 0xDB, 0xDD, 0xDF, 0xFF, 0x22, 0x5B, 0x7B)


def changed_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The bytes with a few changes: flipped, cut, doubled, put in, taken from another message."""
    for _ in range(rng.randrange(1, 5)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        other = rng.choice(others)
        data = rng.choice(
            (
                data[:at] + bytes([rng.choice(BYTES)]) + data[at + 1 :],
                data[:at],
                data[:at] + data[end:],
                data[:end] + data[at:],
                data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:],
                data[:at] + other[rng.randrange(len(other) + 1) :],
            )
        )[:20_000]
    return data


def changed_value(rng: random.Random, value: Any, extremes: Sequence[Any] = EXTREMES) -> Any:
    """A tree of lists, maps and plain values with one of its nodes replaced, left out or added."""
    paths: list[Callable[[Any], Any]] = []
    tree = _copied(value, paths, rng, extremes)
    return rng.choice(paths)(tree) if paths else rng.choice(extremes)


def _copied(
    value: Any, changes: list[Callable[[Any], Any]], rng: random.Random, extremes: Sequence[Any]
) -> Any:
    """A copy; `changes` gets a way to spoil each of its nodes, given the whole tree."""

    def spoil(holder: Any, key: Any) -> Callable[[Any], Any]:
        def change(tree: Any) -> Any:
            if rng.random() < 0.15:
                del holder[key]
            else:
                holder[key] = rng.choice(extremes)
            return tree

        return change

    if isinstance(value, list | tuple):
        copy: Any = [_copied(each, changes, rng, extremes) for each in value]
        keys: Any = range(len(copy))
    elif isinstance(value, dict):
        copy = {key: _copied(each, changes, rng, extremes) for key, each in value.items()}
        keys = list(copy)
    else:
        return value
    changes += [spoil(copy, key) for key in keys]
    return copy
