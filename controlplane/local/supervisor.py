"""Child processes with a parent who cares: started in order, restarted when they die, all stopped.

The supervisor never guesses by name: it stops by process id exactly what it started. Each child
gets a session of its own, so that Ctrl-C reaches only us and we stop the others in order.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT

import anyio
from anyio.abc import Process, TaskGroup, TaskStatus

from controlplane.local import leash
from controlplane.runtime.service import CannotServe

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 0.05
RESTART_FIRST_S = 0.2
RESTART_MAX_S = 5.0
SETTLED_S = 20.0
"""A child that lived this long is restarted without a growing pause."""
LOG_TAIL_LINES = 12

Probe = Callable[[], Awaitable[bool]]


class ChildFailed(CannotServe):
    """A child did not become ready; the text ends with the last lines it wrote."""


@dataclass(frozen=True)
class ChildSpec:
    """What to run. `ready` is asked again and again until it says yes or `start_s` is over."""

    name: str
    argv: tuple[str, ...]
    log_path: Path
    ready: Probe
    environment: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 60.0
    stop_s: float = 8.0
    family: bool = False
    """It starts processes of its own, which must not outlive us either."""


@dataclass
class Child:
    """A spec and its present life; `pid` is None between two lives."""

    spec: ChildSpec
    pid: int | None = None
    ready: bool = False
    restarts: int = 0
    stop_asked: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Supervisor:
    """Runs children inside the caller's task group until each is stopped."""

    def __init__(self, tasks: TaskGroup, on_change: Callable[[Child], None] | None = None) -> None:
        self.children: dict[str, Child] = {}
        self._tasks = tasks
        self._on_change = on_change or (lambda _: None)

    async def start(self, spec: ChildSpec) -> Child:
        """Start and wait until ready. Raises `ChildFailed`; then nothing of it is left."""
        assert spec.name not in self.children, f"{spec.name} runs already"
        child = Child(spec)
        self.children[spec.name] = child
        try:
            await self._tasks.start(self._keep_alive, child)
        except ChildFailed:
            self.children.pop(spec.name, None)
            raise
        return child

    async def stop(self, name: str, *, within_s: float | None = None) -> None:
        """Ask with SIGTERM, insist with SIGKILL after `within_s` (`stop_s` if it is not said), and
        wait until it is gone."""
        child = self.children[name]
        stop_s = child.spec.stop_s if within_s is None else within_s
        child.stop_asked.set()
        _signal(child, terminate=True)
        with anyio.move_on_after(stop_s):
            await child.ended.wait()
        if not child.ended.is_set():
            log.warning("%s did not stop within %g s; killing it", name, stop_s)
            _signal(child, terminate=False)
            await child.ended.wait()
        self.children.pop(name, None)  # who stops a child twice waits for its end twice

    async def stop_together(self, names: Iterable[str]) -> None:
        """Stop these at the same time; one that has gone already is fine."""
        async with anyio.create_task_group() as stopping:
            for name in set(names) & self.children.keys():
                stopping.start_soon(self.stop, name)

    def kill_all(self) -> None:
        """SIGKILL to everything at once; who waits in `stop` then waits no longer."""
        for child in self.children.values():
            child.stop_asked.set()
            _signal(child, terminate=False)

    async def _keep_alive(self, child: Child, *, task_status: TaskStatus[None]) -> None:
        pause_s, first_life = RESTART_FIRST_S, True
        try:
            while True:
                began_s = anyio.current_time()
                await self._one_life(child, task_status if first_life else None)
                first_life = False
                if child.stop_asked.is_set():
                    return
                settled = anyio.current_time() - began_s > SETTLED_S
                pause_s = RESTART_FIRST_S if settled else min(2 * pause_s, RESTART_MAX_S)
                log.warning("%s died; starting it again in %.1f s", child.spec.name, pause_s)
                child.restarts += 1
                self._on_change(child)
                with anyio.move_on_after(pause_s):
                    await child.stop_asked.wait()
                    return
        finally:
            child.ended.set()

    async def _one_life(self, child: Child, started: TaskStatus[None] | None) -> None:
        """From start to exit. Only the first life reports, or fails, towards `start`."""
        spec = child.spec
        process = await _open(spec)
        child.pid = process.pid
        if child.stop_asked.is_set():  # while it had no process yet that could be told
            _signal(child, terminate=True)
        try:
            async with anyio.create_task_group() as life:
                life.start_soon(self._announce_ready, child, started, life.cancel_scope)
                await process.wait()
                life.cancel_scope.cancel()
            if started is not None and not child.ready:
                raise ChildFailed(_obituary(spec, process.returncode))
        finally:
            await _make_sure_it_is_gone(process)
            child.pid, child.ready = None, False

    async def _announce_ready(
        self, child: Child, started: TaskStatus[None] | None, life: anyio.CancelScope
    ) -> None:
        with anyio.move_on_after(child.spec.start_s):
            while True:
                if await child.spec.ready():
                    break
                await anyio.sleep(PROBE_INTERVAL_S)
            child.ready = True
            self._on_change(child)
            if started is not None:
                started.started()
            return
        log.error("%s is not ready after %g s", child.spec.name, child.spec.start_s)
        life.cancel()


async def _open(spec: ChildSpec) -> Process:
    spec.log_path.parent.mkdir(parents=True, exist_ok=True)
    family = ["--family"] if spec.family else []
    with spec.log_path.open("ab") as output:
        return await anyio.open_process(
            [sys.executable, leash.__file__, str(os.getpid()), *family, *spec.argv],
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env={**os.environ, **spec.environment},
            start_new_session=True,
        )


def _signal(child: Child, *, terminate: bool) -> None:
    if child.pid is None:
        return
    try:
        os.kill(child.pid, 15 if terminate else 9)
    except ProcessLookupError:
        log.debug("%s had gone already", child.spec.name)


async def _make_sure_it_is_gone(process: Process) -> None:
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.kill()
        await process.wait()
        try:
            # What it has started itself, as a real engine does, and left behind.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("process %d left nothing behind", process.pid)
        await process.aclose()


def _obituary(spec: ChildSpec, exit_code: int | None) -> str:
    what = f"was not ready within {spec.start_s:g} s"
    if exit_code is not None:
        what = f"exited with code {exit_code}"
    lines = spec.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    tail = "\n".join(f"  | {line}" for line in lines)
    return f"{spec.name} {what}; the end of {spec.log_path}:\n{tail}"
