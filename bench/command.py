"""What `tokenplane bench` does: list, run and show, or write the page."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from bench import peer
from bench.catalogue import NAMES, benchmark, summary
from bench.machine import machine
from bench.options import Options
from bench.report import NoPlace, refresh, table, write

EXIT_OK, EXIT_FAILED, EXIT_BAD_NAME = 0, 1, 2
REPORT = "report"
WIDTH_CHARS = 120
"""Of a table that goes to a file or a log."""


def run(root: Path, name: str, json_out: Path | None, *, quick: bool, seconds: float) -> int:
    """The command; `root` is the checkout. Returns the exit code."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_CHARS)
    if not name:
        for known in NAMES:
            console.print(f"{known:<10}{summary(known)}", highlight=False, soft_wrap=True)
        return EXIT_OK
    if name == REPORT:
        return _report(root, console)
    if name not in NAMES:
        known = ", ".join((*NAMES, REPORT))
        print(f"tokenplane bench: there is no {name!r}; there are: {known}", file=sys.stderr)
        return EXIT_BAD_NAME
    _run(name, Options(quick, seconds), json_out, console)
    return EXIT_OK


def _run(name: str, options: Options, json_out: Path | None, console: Console) -> None:
    measured = benchmark(name)
    rows = [machine()]
    with console.status(f"{name}: measuring") as status:
        for row in measured.run(options):
            rows.append(row)
            status.update(f"{name}: {row.case}: {row.ours}")
    first, *others = rows
    console.print(first.case, f"{first.ours:g} cores", sep=", ", highlight=False, soft_wrap=True)
    console.print(table(name, others, measured.BARS))
    console.print(f"peer: {peer.WHO}" if peer.installed() else peer.HOW_TO_GET_IT)
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        write(json_out, rows)


def _report(root: Path, console: Console) -> int:
    page = root / "docs" / "performance.md"
    try:
        tables = refresh(page, root / "bench" / "results")
    except (NoPlace, OSError) as error:
        print(f"tokenplane bench {REPORT}: {error}", file=sys.stderr)
        return EXIT_FAILED
    console.print(f"{page}: {tables} tables")
    return EXIT_OK
