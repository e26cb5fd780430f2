"""A whole process against real servers: ready, traced, stopped; and every way it can fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.local.ports import free_ports
from controlplane.local.servers import etcd_argv, nats_argv
from tests.support.otlp_receiver import otlp_receiver

SECRET = "correct-horse-battery"
END_S = 20

PROGRAM = textwrap.dedent(
    """
    import sys, anyio
    from opentelemetry.trace import SpanKind
    from controlplane.runtime.process import run_command
    from controlplane.runtime.settings import CommonSettings, Group
    from controlplane.runtime.tracing import tracer

    class EchoSettings(Group):
        fails: bool = False

    class EchoProcess(CommonSettings):
        echo: EchoSettings = EchoSettings()

    class Echo:
        name = "echo"

        def __init__(self, settings, kit):
            self.settings, self.kit = settings, kit

        async def run(self, *, task_status):
            with tracer("echo").start_as_current_span("start"):
                await self.kit.carriers.store.put("/tp/test/echo", b"1")
                assert self.kit.carriers.bus.connected
            task_status.started()
            if self.settings.echo.fails:
                raise ValueError("broken part")
            await anyio.sleep_forever()

        async def drain(self): ...

    sys.exit(run_command("echo", EchoProcess, lambda s, kit: [Echo(s, kit)], sys.argv[1:]))
    """
)


@dataclass
class Running:
    """A process and what it logs, a JSON object a line."""

    popen: subprocess.Popen[str]

    def log(self) -> Iterator[dict[str, str]]:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            yield json.loads(line)

    def until(self, message: str) -> dict[str, str]:
        """Read the log up to a line that says `message`."""
        for line in self.log():
            if message in line["message"]:
                return line
        raise AssertionError(f"never logged: {message}")

    def ended(self) -> tuple[int, list[str]]:
        """The exit code and our own warnings and errors; those of carriers are theirs to test."""
        ours = [line for line in self.log() if line["logger"].startswith("controlplane.")]
        bad = [line for line in ours if line["level"] in ("warning", "error")]
        return self.popen.wait(END_S), [line["message"] for line in bad]


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Real NATS and etcd, as environment variables name them."""
    data = tmp_path_factory.mktemp("servers")
    nats, monitor, etcd, peer = free_ports(4)
    with ExitStack() as stack:
        for name, argv in {
            "nats": nats_argv(data / "nats", port=nats, monitor_port=monitor),
            "etcd": etcd_argv(data / "etcd", port=etcd, peer_port=peer),
        }.items():
            stack.enter_context(child(argv, data / f"{name}.log"))
        yield {
            "TOKENPLANE_NATS__SERVERS": f"nats://127.0.0.1:{nats}",
            "TOKENPLANE_ETCD__ENDPOINTS": f"127.0.0.1:{etcd}",
        }


@contextmanager
def child(argv: tuple[str, ...], log: Path) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as server:
        try:
            yield
        finally:
            server.kill()


@pytest.fixture
def start(servers: dict[str, str]) -> Iterator[Start]:
    """Starts processes on the servers, in cluster `test`, and leaves none behind."""
    with ExitStack() as stack:

        def start(*argv: str, **environment: str) -> Running:
            own = {n: v for n, v in os.environ.items() if not n.startswith("TOKENPLANE_")}
            defaults = {"TOKENPLANE_TELEMETRY__LOG_FORMAT": "json", "TOKENPLANE_CLUSTER": "test"}
            popen = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *argv],
                env=own | defaults | servers | environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(popen)
            stack.callback(popen.kill)
            return Running(popen)

        yield start


@pytest.fixture
def refused() -> Iterator[str]:
    """An address that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_process_becomes_ready_and_stops_as_asked(start: Start) -> None:
    with otlp_receiver() as collector:
        process = start(
            TOKENPLANE_SECRET=SECRET, TOKENPLANE_TELEMETRY__OTLP_ENDPOINT=collector.endpoint
        )
        admin = process.until("admin port: ")["message"].removeprefix("admin port: ")
        process.until("echo is ready")
        with urllib.request.urlopen(f"{admin}/ready", timeout=END_S) as answer:
            assert answer.read() == b"ready\n"
        with urllib.request.urlopen(f"{admin}/metrics", timeout=END_S) as answer:
            assert b"process_cpu_seconds_total" in answer.read()
        process.popen.send_signal(signal.SIGTERM)
        assert process.ended() == (0, [])
        assert [(s.service, s.name) for s in collector.spans] == [("echo", "start")]


def test_without_a_secret_it_warns_aloud_and_shows_none(start: Start) -> None:
    process = start("--echo.fails")
    code, bad = process.ended()
    assert code == 1
    assert "NO CLUSTER SECRET IS SET" in bad[0]
    assert "tokenplane-development" not in "".join(bad)


def test_a_part_that_fails_is_a_bug_with_a_traceback(start: Start) -> None:
    process = start("--echo.fails", TOKENPLANE_SECRET=SECRET)
    line = process.until("this is a bug: ValueError('broken part')")
    assert "Traceback" in line["exception"]
    assert process.ended() == (1, [])


def test_bad_settings_end_with_2_and_start_nothing(start: Start) -> None:
    process = start("--echo.failz", "true")
    _, text = process.popen.communicate(timeout=END_S)
    assert process.popen.returncode == 2
    assert text.startswith("tokenplane echo: bad command line: unknown flag --echo.failz\n")


def test_an_unreachable_nats_is_one_clear_line(start: Start, refused: str) -> None:
    process = start(
        "--nats.servers", f"nats://{refused}", "--nats.connect_s", "0.2", TOKENPLANE_SECRET=SECRET
    )
    code, lines = process.ended()
    assert (code, len(lines)) == (1, 1), lines
    line = lines[0]
    assert f"nats://{refused}" in line
    assert "check the address" in line


def test_an_unreachable_etcd_is_one_clear_line(start: Start, refused: str) -> None:
    process = start("--etcd.endpoints", refused, "--etcd.call_s", "0.2", TOKENPLANE_SECRET=SECRET)
    code, lines = process.ended()
    assert (code, len(lines)) == (1, 1), lines
    line = lines[0]
    assert f"no answer from etcd at {refused}" in line
    assert "etcd.endpoints" in line


def test_a_taken_admin_port_is_one_clear_line(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        code, lines = start("--admin.port", port, TOKENPLANE_SECRET=SECRET).ended()
    assert (code, len(lines)) == (1, 1), lines
    line = lines[0]
    assert f"127.0.0.1:{port}" in line


def test_a_signal_while_it_looks_for_servers_ends_it(start: Start, refused: str) -> None:
    process = start(
        "--etcd.endpoints", refused, "--etcd.call_s", "600",
        "--telemetry.log_level", "debug", TOKENPLANE_SECRET=SECRET,
    )  # fmt: skip
    process.until("connecting")
    process.popen.send_signal(signal.SIGTERM)
    assert process.ended() == (0, [])
