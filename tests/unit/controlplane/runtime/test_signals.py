"""Signals, to a real process: the first asks, the second insists."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.timeout(30)

PROCESS = textwrap.dedent(
    """
    import anyio, sys
    from controlplane.runtime.service import serve_until_signalled

    class Part:
        name = "part"
        async def run(self, *, task_status):
            task_status.started()
            print("ready", flush=True)
            await anyio.sleep_forever()
        async def drain(self):
            print("draining", flush=True)
            if sys.argv[1] == "stuck":
                await anyio.sleep_forever()

    anyio.run(lambda: serve_until_signalled([Part()], drain_s=600))
    print("stopped", flush=True)
    """
)


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A real process with one part, which drains at once or never."""
    running = subprocess.Popen(
        [sys.executable, "-c", PROCESS, request.param], stdout=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def says(process: subprocess.Popen[str], word: str) -> bool:
    assert process.stdout is not None
    return process.stdout.readline().strip() == word


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("process", ["quick"], indirect=True)
def test_the_first_signal_drains(process: subprocess.Popen[str], number: signal.Signals) -> None:
    assert says(process, "ready")
    process.send_signal(number)
    assert says(process, "draining")
    assert says(process, "stopped")
    assert process.wait(10) == 0


@pytest.mark.parametrize("process", ["stuck"], indirect=True)
def test_the_second_signal_does_not_wait(process: subprocess.Popen[str]) -> None:
    assert says(process, "ready")
    process.send_signal(signal.SIGTERM)
    assert says(process, "draining")
    process.send_signal(signal.SIGTERM)
    assert says(process, "stopped")
    assert process.wait(10) == 0
