"""Accelerators by their data sheets, read from TOML files handed in at the start.

    [h200]
    memory_gb = 141
    bandwidth_gb_s = 4800
    dense_tflops = 989        # 16 bits, not sparse

Other fields are left alone. A later file changes what it names in the earlier ones.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


class BadChips(ValueError):
    """A file cannot be used; names it and says what is wrong."""


@dataclass(frozen=True)
class Chip:
    """One accelerator."""

    memory_gb: float
    bandwidth_gb_s: float
    dense_tflops: float


def read_chips(paths: Sequence[Path]) -> dict[str, Chip]:
    """Every chip of the files. Raises `BadChips`."""
    tables: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            for name, table in tomllib.loads(path.read_text()).items():
                tables.setdefault(name, {}).update(table)
        except (OSError, ValueError, TypeError) as error:
            raise BadChips(f"cannot read chips from {path}: {error}") from error
    wanted = [field.name for field in fields(Chip)]
    chips = {}
    for name, table in tables.items():
        try:
            chips[name] = Chip(*(float(table[field]) for field in wanted))
        except (KeyError, TypeError, ValueError) as error:
            raise BadChips(f"[{name}] needs numbers for {', '.join(wanted)}: {error!r}") from error
    return chips
