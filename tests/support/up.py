"""`tokenplane up` as a user runs it: a real process with real children, on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

READY_S = 60.0
POLL_S = 0.05
UP = ("controlplane.cli.main", "up")
PATIENCE_S = 120.0
"""What a process may take to start where many start at once, on a machine that is busy."""


class UpCluster:
    """A running local cluster, read through the state file that `up` writes."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, output: Path) -> None:
        self.process = process
        self._state = state
        self._output = output
        self._home = state.parent.parent.parent

    def tokenplane(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Another command of the same user."""
        ended = subprocess.run(
            [sys.executable, "-m", "controlplane.cli.main", *words],
            env={**os.environ, "TOKENPLANE_HOME": str(self._home), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == status, ended.stderr
        return ended

    @property
    def state(self) -> Mapping[str, Any]:
        loaded: Mapping[str, Any] = json.loads(self._state.read_text())
        return loaded

    @property
    def home(self) -> Path:
        """What TOKENPLANE_HOME is to its processes."""
        return self._home

    @property
    def url(self) -> str:
        return str(self.state["gateway"])

    @property
    def model(self) -> str:
        return str(self.state["model"])

    def environment(self) -> dict[str, str]:
        """For a process that is to belong to the cluster, too."""
        return {
            "TOKENPLANE_CLUSTER": "test",
            "TOKENPLANE_SECRET_FILE": str(self._state.parent / "secret"),
            "TOKENPLANE_NATS__SERVERS": json.dumps([self.state["nats"]]),
            "TOKENPLANE_ETCD__ENDPOINTS": json.dumps([self.state["etcd"]]),
        }

    def pids(self) -> dict[str, int]:
        return {name: child["pid"] for name, child in self.state["children"].items()}

    def gauge(self, url: str, name: str) -> float:
        """One of a process's own metrics, summed over its labels."""
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        mine = (line for line in lines if line.startswith((name + "{", name + " ")))
        return sum(float(line.rpartition(" ")[2]) for line in mine)

    def kill(self, name: str) -> None:
        """`kill -9`, by the process id in the state file."""
        os.kill(self.pids()[name], signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """Stop it where it is: it keeps its connections and does nothing any more."""
        os.kill(self.pids()[name], signal.SIGSTOP)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """The same, for a while."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def restarts(self, name: str) -> int:
        return int(self.state["children"][name]["restarts"])

    def wait_until(self, condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"the cluster ended while waiting for {what}:\n{self.output()}")
            if time.monotonic() > deadline_s:
                pytest.fail(f"not within {within_s:g} s: {what}\n{self.state}\n{self.output()}")
            time.sleep(POLL_S)

    def wait_ready(self, within_s: float = READY_S) -> None:
        """Every child is up and says ready."""
        self.wait_until(
            lambda: (
                self._state.exists()
                and bool(self.state["complete"])
                and all(child["ready"] for child in self.state["children"].values())
            ),
            "every process to be ready",
            within_s,
        )

    def output(self) -> str:
        logs = sorted(self._state.parent.glob("logs/*.log"))
        tails = [f"--- {log.name}\n" + "\n".join(_tail(log)) for log in logs]
        return "\n".join([*_tail(self._output), *tails])


def _tail(path: Path, lines: int = 8) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-lines:]


@contextmanager
def up(
    directory: Path,
    *options: str,
    ready_s: float = READY_S,
    command: Sequence[str] = UP,
    **environment: str,
) -> Iterator[UpCluster]:
    """Start a cluster that keeps everything below `directory`; stop it with SIGINT and check
    that it left no process. `command` may be another that takes the same words as `up`."""
    output = directory / "up.log"
    argv = [sys.executable, "-m", *command, "--name", "test", "--port", "0"]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [*argv, *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TOKENPLANE_HOME": str(directory), **environment},
            start_new_session=True,
        )
    cluster = UpCluster(process, directory / "clusters" / "test" / "cluster.json", output)
    try:
        cluster.wait_ready(ready_s)
        yield cluster
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 0, cluster.output()
        # What was killed takes a moment to be gone, the more memory it had.
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
