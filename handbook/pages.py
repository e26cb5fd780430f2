"""Which pages there are, and what writes each; a test holds every page to its writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from handbook import cli

ROOT = Path(__file__).parents[1]

PAGES: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli.page,
}
