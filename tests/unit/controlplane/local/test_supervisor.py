"""Children are restarted when they die, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.lowlevel import checkpoint

from controlplane.local.supervisor import Child, ChildFailed, ChildSpec, Supervisor

pytestmark = pytest.mark.anyio

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); " + SLEEPER


async def wait_until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(20):
        while True:
            if condition():
                return
            await anyio.sleep(0.02)
    pytest.fail(f"never happened: {what}")


def pid_of(child: Child) -> int:
    assert child.pid is not None
    return child.pid


def spec(tmp_path: Path, code: str, *, start_s: float = 10.0, stop_s: float = 5.0) -> ChildSpec:
    log_path = tmp_path / "child.log"

    async def ready() -> bool:
        return log_path.exists() and "up" in log_path.read_text()

    argv = (sys.executable, "-c", code)
    return ChildSpec("child", argv, log_path, ready, start_s=start_s, stop_s=stop_s)


async def test_a_killed_child_lives_again(tmp_path: Path) -> None:
    changes: list[int] = []

    def on_change(child: Child) -> None:
        changes.append(child.restarts)

    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks, on_change)
        child = await supervisor.start(spec(tmp_path, SLEEPER))
        first = pid_of(child)
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: child.restarts == 1 and child.ready, "a second life")
        second = pid_of(child)
        assert second != first
        await supervisor.stop_together(["child"])
    assert changes[-1] == 1
    assert not psutil.pid_exists(second)
    assert not supervisor.children


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)
        child = await supervisor.start(spec(tmp_path, STUBBORN, stop_s=0.2))
        pid = pid_of(child)
        await supervisor.stop("child")
    assert not psutil.pid_exists(pid)


async def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)
        with pytest.raises(ChildFailed, match=r"exited with code 3.*\n.*no such luck"):
            await supervisor.start(spec(tmp_path, "import sys; print('no such luck'); sys.exit(3)"))
        assert not supervisor.children


async def test_a_child_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)
        silent = "import time; time.sleep(600)"
        with pytest.raises(ChildFailed, match=r"not ready within 0\.3 s"):
            await supervisor.start(spec(tmp_path, silent, start_s=0.3))
    assert "child.log" in {path.name for path in tmp_path.iterdir()}


async def test_one_that_is_stopped_while_it_starts_has_failed_to_start(tmp_path: Path) -> None:
    """A planner may withdraw an engine before it is ready."""
    failed: list[str] = []
    slow = SLEEPER.replace("'up'", "'loading'")
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)

        async def start() -> None:
            with pytest.raises(ChildFailed) as raised:
                await supervisor.start(spec(tmp_path, slow, start_s=600.0))
            failed.append(str(raised.value))

        async with anyio.create_task_group() as starting:
            starting.start_soon(start)
            await wait_until((tmp_path / "child.log").exists, "the child's first word")
            child = supervisor.children["child"]
            await wait_until(lambda: child.pid is not None, "a process")
            pid = pid_of(child)
            await supervisor.stop("child")
        assert len(failed) == 1 and not supervisor.children and not psutil.pid_exists(pid)


async def test_one_that_is_stopped_before_it_has_a_process_is_asked_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)

        async def start() -> None:
            with pytest.raises(ChildFailed):
                await supervisor.start(spec(tmp_path, SLEEPER, stop_s=10.0))

        async with anyio.create_task_group() as starting:
            starting.start_soon(start)
            while not supervisor.children:
                await checkpoint()
            assert supervisor.children["child"].pid is None
            await supervisor.stop("child")
    assert "killing it" not in caplog.text


async def test_cancelling_the_parent_leaves_no_child(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        child = await Supervisor(tasks).start(spec(tmp_path, SLEEPER))
        pid = pid_of(child)
        tasks.cancel_scope.cancel()
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
async def test_even_a_killed_parent_leaves_no_child() -> None:
    from controlplane.local import leash

    code = (
        "import os, subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, {leash.__file__!r}, str(os.getpid()),"
        " sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = psutil.Process(pid)
        await wait_until(lambda: "leash" not in " ".join(child.cmdline()), "the program runs")
        parent.kill()
    await wait_until(
        lambda: not psutil.pid_exists(pid) or child.status() == psutil.STATUS_ZOMBIE, "its end"
    )


FAMILY = (
    "import subprocess, sys;"
    f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=-3);"
    f"print('child', child.pid); {SLEEPER}"
)
"""As a real engine, of whose processes we know the first one only."""


async def test_what_a_child_has_started_dies_with_it(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(tasks)
        child = await supervisor.start(replace(spec(tmp_path, FAMILY), family=True))
        left_behind = psutil.Process(int(child.spec.log_path.read_text().split()[1]))
        assert left_behind.is_running()
        await supervisor.stop("child")
        await wait_until(
            lambda: not left_behind.is_running() or left_behind.status() == psutil.STATUS_ZOMBIE,
            "the end of the child's child",
        )


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
async def test_even_a_killed_parent_leaves_no_childs_child(tmp_path: Path) -> None:
    from controlplane.local import leash

    log = tmp_path / "family.log"
    code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {leash.__file__!r}, str(os.getpid()), '--family',"
        f" sys.executable, '-c', {FAMILY!r}], stdout=open({str(log)!r}, 'w'),"
        " start_new_session=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        await wait_until(lambda: log.exists() and "up" in log.read_text(), "the family")
        left_behind = psutil.Process(int(log.read_text().split()[1]))
        parent.kill()
    await wait_until(
        lambda: not left_behind.is_running() or left_behind.status() == psutil.STATUS_ZOMBIE,
        "its end",
    )
