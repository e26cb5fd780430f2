"""`tokenplane bench NAME`: run a benchmark of the repository's `bench/` folder.

Benchmarks are not installed with the package: they are found beside it in a checkout.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

import controlplane
from controlplane.runtime.process import EXIT_BAD_SETTINGS, EXIT_FAILED
from controlplane.runtime.settings import CommandSettings, SettingsError, load

PROG = "tokenplane bench"
NO_CHECKOUT = (
    f"{PROG}: benchmarks come with the source, not with the package; in a checkout of the"
    " repository, `make bench` builds their environment and runs all of them"
)


class BenchSettings(CommandSettings):
    """Run one benchmark, beside a peer where one is installed; without a name, list them."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    name: CliPositionalArg[str] = Field(
        "", description="which; `report` writes kept results into docs/performance.md"
    )
    json_out: Path | None = Field(None, alias="json", description="write the rows here")
    quick: bool = Field(False, description="a small run that shows that it works, not figures")
    seconds: float = Field(60.0, gt=0, description="how long to watch a process over time")


class Runner(Protocol):
    """`bench.command`, which is not there for the type checker of an installed package."""

    def run(
        self, root: Path, name: str, json_out: Path | None, *, quick: bool, seconds: float
    ) -> int: ...


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(BenchSettings, argv, prog=PROG)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    root = checkout()
    if root is None:
        print(NO_CHECKOUT, file=sys.stderr)
        return EXIT_FAILED
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    runner = cast(Runner, importlib.import_module("bench.command"))
    return runner.run(
        root, settings.name, settings.json_out, quick=settings.quick, seconds=settings.seconds
    )


def checkout() -> Path | None:
    """The repository that this package is run from, if it is."""
    root = Path(controlplane.__file__).parents[1]
    return root if (root / "bench" / "command.py").exists() else None
