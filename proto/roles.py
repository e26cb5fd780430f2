"""A fleet in short: `2P2D` is two workers that prefill and two that decode, `A` does both."""

from __future__ import annotations

import re

from proto.workers import Role

_LETTERS = {"A": Role.AGGREGATED, "P": Role.PREFILL, "D": Role.DECODE}
_PART = re.compile(r"(\d+)([APD])")


def parse_roles(text: str) -> tuple[Role, ...]:
    """The role of each worker, in order. Raises ValueError."""
    parts = _PART.findall(text.upper())
    if not parts or "".join(map("".join, parts)) != text.upper():
        raise ValueError(f"write roles as 2P2D or 1P2D1A, not {text!r}")
    roles = tuple(_LETTERS[letter] for count, letter in parts for _ in range(int(count)))
    if not roles or set(roles) == {Role.PREFILL}:
        raise ValueError(f"{text}: somebody must decode")
    return roles
