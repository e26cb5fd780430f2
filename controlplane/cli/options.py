"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from controlplane.replay.arms import arm

DRAWN = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")

T = TypeVar("T")


def _split(value: object) -> object:
    return [n.strip() for n in value.split(",")] if isinstance(value, str) else value


def _each_once(names: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(names)) < len(names):
        raise ValueError("name each once, separated by commas")
    return names


def _writable(path: Path) -> Path:
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write it in")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    return path


def _drawable(path: Path) -> Path:
    if path.suffix.lower() not in DRAWN:
        raise ValueError(f"{path} is none of: {', '.join(DRAWN)}")
    return path


def written_arm(text: str) -> str:
    """`text`, if an arm is written so; ValueError else."""
    arm(text)
    return text


Names = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split), AfterValidator(_each_once)]
"""Several, separated by commas."""
OutPath = Annotated[Path, AfterValidator(_writable)]
"""A file to write; its folder is there."""
PlotPath = Annotated[OutPath, AfterValidator(_drawable)]
"""A picture to write, of a kind that can be drawn."""
