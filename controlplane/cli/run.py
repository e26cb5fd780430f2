"""How an interactive command runs: settings, an event loop, and one clear line when it fails."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import anyio

from controlplane.local.layout import ClusterRunning, DirectoryUnusable
from controlplane.local.ports import PortTaken
from controlplane.local.servers import ServerMissing
from controlplane.local.supervisor import ChildFailed
from controlplane.runtime.settings import CommandSettings, SettingsError, load
from proto.wire.errors import WireError

EXIT_OK, EXIT_FAILED, EXIT_BAD_SETTINGS = 0, 1, 2

EXPECTED = (
    ChildFailed, ClusterRunning, DirectoryUnusable, PortTaken, ServerMissing, WireError,
)  # fmt: skip
"""Failures whose text is all a user needs; anything else is a bug and shows its traceback."""

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
    except BaseExceptionGroup as group:
        return _explain(prog, list(_leaves(group)), group)
    except EXPECTED as error:
        return _explain(prog, [error], error)
    return EXIT_OK


def _explain(prog: str, errors: Sequence[BaseException], whole: BaseException) -> int:
    if not all(isinstance(error, EXPECTED) for error in errors):
        raise whole
    for text in dict.fromkeys(str(error) for error in errors):
        sys.stderr.write(f"{prog}: {text}\n")
    return EXIT_FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
