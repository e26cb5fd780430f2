"""Lifecycle: services start in order, drain in reverse, and leave nothing behind.

A service is anything with `run` and `drain`. `run` does all its work inside its own task group,
reports ready through `task_status`, and goes on until it is cancelled. `drain` asks it to refuse
new work and finish what it has; it returns when that is done.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

log = logging.getLogger(__name__)


class Service(Protocol):
    """One part of a process."""

    @property
    def name(self) -> str: ...

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Work until cancelled; `task_status.started()` once ready to serve."""

    async def drain(self) -> None:
        """Refuse new work, finish what is under way; the caller sets the deadline."""


class CannotServe(Exception):
    """A part cannot do its work; the text says why and what to do, and nobody needs a traceback.

    Services derive their own from it, such as a port that is taken.
    """


class StartupTimeout(CannotServe):
    """A service was not ready in time; names it."""


class Phase(StrEnum):
    """How far a service has come in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


Observer = Callable[[str, Phase], None]
"""Told the name of a service and the phase it enters."""


def _nobody(name: str, phase: Phase) -> None:
    """Nobody wants to know."""


async def serve(
    services: Sequence[Service],
    stop: anyio.Event,
    *,
    start_s: float = 60.0,
    drain_s: float = 10.0,
    observe: Observer = _nobody,
) -> None:
    """Start each service after the one before is ready; on `stop`, drain in reverse, then cancel.

    Each drain has `drain_s` seconds. A `stop` that comes during the start drains what has started
    by then. A service that ends or fails by itself takes the others down with it, and its error
    is raised: a process with half its parts is worse than none.
    """
    async with anyio.create_task_group() as tasks:
        running: list[Service] = []
        with anyio.CancelScope() as starting:
            tasks.start_soon(_cancel_on, stop, starting)
            for service in services:
                observe(service.name, Phase.STARTING)
                await _start(service, tasks, stop, start_s)
                observe(service.name, Phase.READY)
                running.append(service)
        await stop.wait()
        for service in reversed(running):
            observe(service.name, Phase.DRAINING)
            await _drain(service, drain_s)
        tasks.cancel_scope.cancel()


async def _start(service: Service, tasks: TaskGroup, stop: anyio.Event, start_s: float) -> None:
    with anyio.move_on_after(start_s) as starting:
        await tasks.start(_run_to_the_end, service, stop)
    if starting.cancelled_caught:
        raise StartupTimeout(f"{service.name} was not ready within {start_s:g} s")
    log.info("%s is ready", service.name)


async def _run_to_the_end(
    service: Service, stop: anyio.Event, *, task_status: TaskStatus[None]
) -> None:
    await service.run(task_status=task_status)
    if not stop.is_set():
        raise RuntimeError(f"{service.name} ended by itself")


async def _drain(service: Service, drain_s: float) -> None:
    """One service that cannot drain must not keep the others from it."""
    try:
        with anyio.move_on_after(drain_s) as draining:
            await service.drain()
    except Exception:  # the top of this drain
        log.exception("%s failed to drain; cancelling it", service.name)
    if draining.cancelled_caught:
        log.warning("%s did not drain within %g s; cancelling it", service.name, drain_s)


async def _cancel_on(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def stop_on_signals(
    stop: anyio.Event,
    insist: anyio.CancelScope,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """First SIGTERM or SIGINT asks (sets `stop`), the second insists (cancels)."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for received in signals:
            if stop.is_set():
                log.warning("%s again: not waiting any longer", received.name)
                insist.cancel()
                return
            log.info("%s: draining", received.name)
            stop.set()


async def serve_until_signalled(
    services: Sequence[Service],
    *,
    start_s: float = 60.0,
    drain_s: float = 10.0,
    observe: Observer = _nobody,
) -> None:
    """`serve` until SIGTERM or SIGINT; a second signal skips the rest of the drain."""
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(stop_on_signals, stop, tasks.cancel_scope)
        await serve(services, stop, start_s=start_s, drain_s=drain_s, observe=observe)
        tasks.cancel_scope.cancel()
