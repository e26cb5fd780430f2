"""Accelerators by name: memory, speed, links and price. Facts for labels, costs and what-ifs.

Nothing here says how fast an engine is: that is measured, per hardware, engine, version and model.
The table is configuration (`hardware.toml` beside this module says what each field is); a file of
the user's is laid over it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class BadHardware(Exception):
    """A table of accelerators cannot be used; names the file and says what is wrong."""


class Accelerator(BaseModel):
    """One accelerator; `hardware.toml` says what the fields mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str = ""
    memory_gb: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    dense_tflops: float = Field(gt=0)
    precisions: tuple[str, ...] = ()
    nvlink_accelerators: int = Field(default=1, ge=1)
    nvlink_gb_s: float = Field(default=0.0, ge=0)
    price_per_hour: float | None = Field(default=None, ge=0)
    """Dollars for one; None: nobody said."""


class Catalogue(Mapping[str, Accelerator]):
    """Accelerators by name."""

    def __init__(self, accelerators: Mapping[str, Accelerator]) -> None:
        self._accelerators = dict(accelerators)

    def __getitem__(self, name: str) -> Accelerator:
        return self._accelerators[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._accelerators)

    def __len__(self) -> int:
        return len(self._accelerators)

    def of(self, profile: str) -> Accelerator | None:
        """What a worker's hardware profile names: an accelerator, alone or followed by `-` and
        whatever else sets the profile apart, as in `h100-sxm`. The longest name counts."""
        words = profile.split("-")
        names = ("-".join(words[:count]) for count in range(len(words), 0, -1))
        return next((self._accelerators[name] for name in names if name in self), None)


def load_catalogue(own: Path | None = None) -> Catalogue:
    """The built-in accelerators, with a file of the user's laid over them. Raises `BadHardware`."""
    tables = _read(builtin_file())
    for name, table in _read(own).items() if own else ():
        tables[name] = {**tables.get(name, {}), **table}
    try:
        return Catalogue({name: Accelerator(name=name, **table) for name, table in tables.items()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadHardware(f"{own}: {where}: {first['msg']}; see hardware.toml") from None


def builtin_file() -> Path:
    """Where the built-in table lies."""
    with as_file(files("proto") / "hardware.toml") as path:
        return path


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadHardware(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadHardware(f"{path} is not TOML: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise BadHardware(f"{path}: {name} is not a table; write [accelerator] and its fields")
    return tables
