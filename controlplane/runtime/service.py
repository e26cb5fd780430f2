"""Lifecycle: services start in order, drain in reverse, and leave nothing behind.

A service is anything with `run` and `drain`. `run` does all its work inside its own task group,
reports ready through `task_status`, and goes on until it is cancelled. `drain` asks it to refuse
new work and finish what it has; it returns when that is done.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

log = logging.getLogger(__name__)


class Service(Protocol):
    """One part of a process."""

    @property
    def name(self) -> str: ...

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Work until cancelled; `task_status.started()` once ready to serve."""

    async def drain(self) -> None:
        """Refuse new work, finish what is under way; the caller sets the deadline."""


class StartupTimeout(Exception):
    """A service was not ready in time; names it."""


async def serve(
    services: Sequence[Service],
    stop: anyio.Event,
    *,
    start_s: float = 60.0,
    drain_s: float = 10.0,
) -> None:
    """Start each service after the one before is ready; on `stop`, drain in reverse, then cancel.

    Each drain has `drain_s` seconds. A service that ends or fails by itself takes the others
    down with it, and its error is raised: a process with half its parts is worse than none.
    """
    async with anyio.create_task_group() as tasks:
        for service in services:
            with anyio.move_on_after(start_s) as starting:
                await tasks.start(_run_to_the_end, service)
            if starting.cancelled_caught:
                raise StartupTimeout(f"{service.name} was not ready within {start_s:g} s")
            log.info("%s is ready", service.name)
        await stop.wait()
        for service in reversed(services):
            with anyio.move_on_after(drain_s) as draining:
                await service.drain()
            if draining.cancelled_caught:
                log.warning("%s did not drain within %g s; cancelling it", service.name, drain_s)
        tasks.cancel_scope.cancel()


async def _run_to_the_end(service: Service, *, task_status: TaskStatus[None]) -> None:
    await service.run(task_status=task_status)
    raise RuntimeError(f"{service.name} ended by itself")


async def stop_on_signals(stop: anyio.Event, insist: anyio.CancelScope) -> None:
    """First SIGTERM or SIGINT asks (sets `stop`), the second insists (cancels)."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stop.is_set():
                insist.cancel()
                return
            stop.set()


async def serve_until_signalled(
    services: Sequence[Service], *, start_s: float = 60.0, drain_s: float = 10.0
) -> None:
    """`serve` until SIGTERM or SIGINT; a second signal skips the rest of the drain."""
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signals, stop, tasks.cancel_scope)
        await serve(services, stop, start_s=start_s, drain_s=drain_s)
        tasks.cancel_scope.cancel()
