"""How an interactive command runs: settings, an event loop, and one clear line when it fails."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from controlplane.runtime.process import (
    EXIT_BAD_SETTINGS,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXPECTED,
    leaves,
)
from controlplane.runtime.settings import CommandSettings, SettingsError, load

S = TypeVar("S", bound=CommandSettings)


def run_interactive(
    prog: str, settings_type: type[S], command: Callable[[S], Awaitable[None]], argv: Sequence[str]
) -> int:
    """Load the settings and run `command(settings)` on uvloop; returns the exit code."""
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    try:
        settings = load(settings_type, argv, prog=prog)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS
    try:
        anyio.run(command, settings, backend="asyncio", backend_options={"use_uvloop": True})
    except (ExceptionGroup, *EXPECTED) as error:
        errors = list(leaves(error))
        if not all(isinstance(each, EXPECTED) for each in errors):
            raise
        for text in dict.fromkeys(str(each) for each in errors):
            sys.stderr.write(f"{prog}: {text}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK
