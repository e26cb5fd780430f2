"""The one way any process of Tokenplane starts, and the exit codes it ends with.

    def router(argv: Sequence[str]) -> int:
        return run_command("router", RouterProcess, build_router, argv)

where `build_router(settings, kit)` makes the services of the process from its carriers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from controlplane.runtime.admin import AdminServer
from controlplane.runtime.carriers import Carriers, open_carriers
from controlplane.runtime.garbage import collect_in_short_pauses
from controlplane.runtime.logs import setup_logging
from controlplane.runtime.readiness import Readiness
from controlplane.runtime.service import CannotServe, Phase, Service, serve, stop_on_signals
from controlplane.runtime.settings import CommonSettings, SettingsError, load
from controlplane.runtime.tracing import setup_tracing
from proto.wire.errors import WireError

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_BAD_SETTINGS, EXIT_INTERRUPTED = 0, 1, 2, 130

EXPECTED = (WireError, CannotServe)
"""Failures whose text is all an operator needs; anything else is a bug and shows its traceback."""


@dataclass(frozen=True)
class Kit:
    """What a process gives to the function that builds its services."""

    carriers: Carriers
    metrics: CollectorRegistry
    readiness: Readiness


Build = Callable[[Kit], Sequence[Service]]
"""Makes a process's services; they start in this order and drain in reverse."""

S = TypeVar("S", bound=CommonSettings)


def run_command(
    service: str,
    settings_type: type[S],
    build: Callable[[S, Kit], Sequence[Service]],
    argv: Sequence[str],
    *,
    prog: str | None = None,
    settle: Callable[[S], S] = lambda settings: settings,
) -> int:
    """Load the settings and run the process; returns its exit code. `settle` may fill in what
    nobody has set."""
    try:
        settings = settle(load(settings_type, argv, prog=prog or f"tokenplane {service}"))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS
    return run_process(service, settings, partial(build, settings))


def run_process(service: str, settings: CommonSettings, build: Build) -> int:
    """Run until SIGTERM or SIGINT, or until a part fails; returns the exit code.

    0: stopped as asked. 1: failed, with one line in the log that says why.
    """
    setup_logging(service, settings.telemetry)
    flush_traces = setup_tracing(service, settings.telemetry)
    if settings.development_secret:
        log.warning(
            "NO CLUSTER SECRET IS SET: the development secret is in use, which everybody knows; "
            "set TOKENPLANE_SECRET or TOKENPLANE_SECRET_FILE before anyone else can reach this"
        )
    try:
        anyio.run(
            _main, service, settings, build, backend="asyncio", backend_options={"use_uvloop": True}
        )
    except Exception as error:  # noqa: BLE001 - the top of the process; logged by _report
        return _report(error)
    finally:
        flush_traces()
    log.info("stopped")
    return EXIT_OK


async def _main(service: str, settings: CommonSettings, build: Build) -> None:
    stop = anyio.Event()
    serving = False

    async def abandon_the_start() -> None:
        await stop.wait()
        if not serving:
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        await tasks.start(stop_on_signals, stop, tasks.cancel_scope)
        tasks.start_soon(abandon_the_start)
        tasks.start_soon(collect_in_short_pauses)
        async with open_carriers(settings, service) as carriers:
            serving = True
            await _serve(settings, build, carriers, stop)
        tasks.cancel_scope.cancel()


async def _serve(
    settings: CommonSettings, build: Build, carriers: Carriers, stop: anyio.Event
) -> None:
    metrics = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=metrics)
    readiness = Readiness()
    services = build(Kit(carriers, metrics, readiness))
    for part in services:
        readiness.observe(part.name, Phase.STARTING)
    await serve(
        [AdminServer(settings.admin, metrics, readiness.not_ready), *services],
        stop,
        start_s=settings.start_s,
        drain_s=settings.drain_s,
        observe=readiness.observe,
    )


def _report(error: Exception) -> int:
    """Log what ended the process: a line for what can be expected, a traceback for a bug."""
    for leaf in leaves(error):
        if isinstance(leaf, EXPECTED):
            log.error("%s", leaf)
        else:
            log.error("this is a bug: %r", leaf, exc_info=leaf)
    return EXIT_FAILED


def leaves(error: Exception) -> Iterator[Exception]:
    """The errors that a tree of exception groups holds."""
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
