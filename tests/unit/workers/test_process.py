"""The engine as a process: how it starts, refuses to start, and stops."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import anyio
import msgspec
import pytest

from tests.conftest import REPOSITORY
from tests.unit.workers.sim_process import ask_and_stall, client, free_port, sim
from workers.sim.tokens import write_model

STOP_S = 10.0


def refused(*options: str) -> str:
    """The one line that a process says which cannot start."""
    ended = subprocess.run(
        [sys.executable, "-m", "workers.sim", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    [line] = ended.stderr.splitlines()
    return line


@pytest.mark.anyio
async def test_sigterm_ends_streams_with_an_error_and_the_process_well() -> None:
    with sim() as engine:
        async with client(engine) as c:
            body = {"prompt": "on and on", "max_tokens": 20_000, "stream": True}
            async with c.session.post("/v1/completions", json=body) as response:
                await response.content.readline()
                engine.terminate()
                with anyio.fail_after(STOP_S):
                    *_, error, done = [line async for line in response.content if line.strip()]
        assert done.strip() == b"data: [DONE]"
        told = msgspec.json.decode(error.removeprefix(b"data: "))["error"]
        assert (told["code"], told["type"]) == (503, "ServiceUnavailableError")
        assert engine.process.wait(STOP_S) == 0
        assert "Traceback" not in engine.output()


@pytest.mark.anyio
async def test_sigterm_answers_who_waits_for_a_whole_answer() -> None:
    with sim() as engine:
        async with client(engine) as c, anyio.create_task_group() as tasks:
            body = {"prompt": "on and on", "max_tokens": 20_000}

            async def ask() -> None:
                answer = await c.post("/v1/completions", body, status=503)
                assert "shutting down" in answer["error"]["message"]

            tasks.start_soon(ask)
            await c.wait_for_metric("vllm:num_requests_running", 1)
            engine.terminate()
        assert engine.process.wait(STOP_S) == 0


@pytest.mark.anyio
async def test_a_reader_that_stalls_does_not_keep_it_from_stopping() -> None:
    with sim("--speed", "20") as engine, closing(ask_and_stall(engine, 1500, n=32)):
        async with client(engine) as c:
            # More than any socket buffers.
            await c.wait_for_metric("vllm:generation_tokens_total", 32 * 900, or_more=True)
        engine.terminate()
        assert engine.process.wait(STOP_S) == 0


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refused("--port", port) == (
            f"workers.sim: cannot listen on 127.0.0.1:{port}: Address already in use"
        )
        for ports in (
            ("--events-port", port),
            ("--events-port", str(free_port()), "--replay-port", port),
        ):
            assert refused("--port", "0", *ports) == (
                f"workers.sim: cannot publish KV events on tcp://127.0.0.1:{port}: "
                "Address already in use"
            )


def test_what_cannot_work_together_is_said_in_one_line(tmp_path: Path) -> None:
    said = refused("--blocks", "10", "--max-model-len", "161")
    assert "--max-model-len 161 does not fit the KV cache of 160 tokens" in said
    assert "every sequence needs one a step" in refused("--max-num-batched-tokens", "10")
    assert "is no usable model directory" in refused("--model-dir", str(tmp_path))


@pytest.mark.anyio
async def test_a_given_model_directory_is_used_and_named(tmp_path: Path) -> None:
    write_model(tmp_path, context_tokens=512)
    with sim("--model-dir", str(tmp_path)) as engine:
        async with client(engine) as c:
            [model] = (await c.get("/v1/models"))["data"]
    assert (model["root"], model["max_model_len"]) == (str(tmp_path), 512)


def test_it_can_be_stopped_before_it_listens() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.sim", "--start-delay-s", "3600"], cwd=REPOSITORY
    )
    try:
        _wait_until_it_catches(process, signal.SIGTERM)
        process.terminate()
        assert process.wait(STOP_S) == 0
    finally:
        process.kill()
        process.wait()


def _wait_until_it_catches(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    status = Path(f"/proc/{process.pid}/status")
    deadline_s = time.monotonic() + STOP_S
    while True:
        [caught] = re.findall(r"^SigCgt:\s+(\w+)$", status.read_text(), re.MULTILINE)
        if int(caught, 16) >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_it_loads_neither_numpy_nor_the_control_plane() -> None:
    code = (
        "import sys, workers.sim.__main__; "
        "print({'numpy', 'matplotlib', 'proto', 'controlplane', 'agents'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "set()"
