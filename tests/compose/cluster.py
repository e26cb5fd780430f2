"""A cluster of docker compose under a project name and ports of its own, gone at the end."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from controlplane.local.ports import free_ports

TOP = Path(__file__).parents[2]
PROJECT = "tokenplane-test"
PORTS = ("GATEWAY_PORT", "CONSOLE_PORT", "JAEGER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
UP_S, COMMAND_S, POLL_S = 300, 120, 0.5

T = TypeVar("T")


class Container(NamedTuple):
    """One replica."""

    id: str
    service: str
    state: str
    health: str
    exit_code: int


class ComposeCluster:
    """What a test does with it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def url(self, port: str) -> str:
        """Where a published port of .env is."""
        return f"http://127.0.0.1:{self._environment[port]}"

    def compose(self, *words: str, timeout_s: float = COMMAND_S) -> str:
        """`docker compose ...`; fails the test with what it said."""
        argv = ["docker", "compose", "-p", PROJECT, "--profile", "observability", *words]
        done = subprocess.run(
            argv, cwd=TOP, env=self._environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, **replicas: int) -> None:
        """Start what is not there; returns when all of it is healthy."""
        scale = [word for name, n in replicas.items() for word in ("--scale", f"{name}={n}")]
        try:
            self.compose("up", "-d", "--wait", *scale, *self._services(), timeout_s=UP_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '20')}") from error

    def containers(
        self, service: str | None = None, *, all_of_them: bool = False
    ) -> list[Container]:
        """The replicas of one service, or of all; `all_of_them`, those that ended too."""
        words = ["ps", "--format", "json", *(["--all"] if all_of_them else [])]
        lines = self.compose(*words, *([service] if service else [])).splitlines()
        found = [json.loads(line) for line in lines]
        return [
            Container(c["ID"][:12], c["Service"], c["State"], c["Health"], c["ExitCode"])
            for c in found
        ]

    def crash(self, container: str) -> None:
        """Kill its processes as a fault would: unlike after `docker kill` it is started again."""
        argv = ["docker", "exec", container, "bash", "-c", "kill -9 -1"]
        subprocess.run(argv, capture_output=True, timeout=COMMAND_S)

    def log_of(self, container: str) -> str:
        """All that it has said."""
        argv = ["docker", "logs", container]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=True)
        return done.stdout + done.stderr

    def _services(self) -> Sequence[str]:
        """All but Grafana, which has no stand-in, unless its image is there."""
        names = self.compose("config", "--services").split()
        images = json.loads(self.compose("config", "--format", "json"))["services"]
        there = ["docker", "image", "inspect", images["grafana"]["image"]]
        if subprocess.run(there, capture_output=True, timeout=COMMAND_S).returncode:
            names.remove("grafana")
        return names


@contextmanager
def running() -> Iterator[ComposeCluster]:
    """Build the image, start the cluster, and leave nothing behind."""
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    trace = {"OTLP_ENDPOINT": "http://collector:4318"}
    cluster = ComposeCluster({**os.environ, **ports, **trace})
    cluster.compose("build", "gateway", timeout_s=600)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--remove-orphans")


def get_json(url: str) -> Any:
    """What a URL answers, or None where it does not answer 200."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def until(ask: Callable[[], T | None], what: str, within_s: float = 60.0) -> T:
    """What `ask` says once it says something; fails the test when it never does."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if said := ask():
            return said
        time.sleep(POLL_S)
    raise AssertionError(f"not within {within_s:g} s: {what}")
