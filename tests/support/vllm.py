"""Real vLLM on this machine's CPU, from the environment that `make vllm` builds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from controlplane.local.ports import free_ports
from tests.conftest import REPOSITORY
from tests.unit.workers.sim_process import free_port
from workers.launch.spec import EnginePorts, EngineSpec
from workers.launch.vllm import command

ENVIRONMENT = REPOSITORY / ".venv-vllm"
PROGRAM = ENVIRONMENT / "bin" / "vllm"
MODEL = ENVIRONMENT / "tiny-llama"
SERVED = MODEL.name
BLOCK_TOKENS, CONTEXT_TOKENS, KV_CACHE_MIB = 32, 2048, 32
KV_CACHE_TOKENS = KV_CACHE_MIB << 10
"""A KiB each, of this model."""
ANSWER_S = 300.0
"""Until an answer has come, on a machine that does much else."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_SERVER_DEV_MODE": "1"}
"""Nothing is looked for elsewhere; developer mode lets a test empty the cache."""
READY_S = 600.0
POLL_S = 0.2

UP_OPTIONS = (
    *("--engine", "vllm", "--model", str(MODEL), "--engine-program", str(PROGRAM)),
    *("--context-tokens", str(CONTEXT_TOKENS), "--kv-cache-mib", str(KV_CACHE_MIB)),
)
"""For `tokenplane up`."""


def require_vllm() -> None:
    """These tests were asked for: without their engine they fail."""
    if not PROGRAM.exists() or not MODEL.is_dir():
        pytest.fail(f"{PROGRAM} or {MODEL} is not there: `make vllm` builds both")


def new_prompt(rng: random.Random, tokens: int) -> list[int]:
    """Token ids that no cache has."""
    return [rng.randrange(10, 2000) for _ in range(tokens)]


class Vllm:
    """One running engine."""

    def __init__(self, process: subprocess.Popen[bytes], ports: EnginePorts, log: Path) -> None:
        self.process = process
        self.ports = ports
        self.url = f"http://127.0.0.1:{ports.http}"
        self._log = log

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + READY_S
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                tail = self._log.read_text(errors="replace").splitlines()[-30:]
                pytest.fail("vLLM did not start:\n" + "\n".join(tail))
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(POLL_S)

    def complete(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> dict[str, Any]:
        """A greedy completion with its token ids."""
        return complete(self.url, prompt, max_tokens, headers, **more)

    def counter(self, name: str, **labels: str) -> float:
        return counter(self.url, name, **labels)


def complete(
    url: str,
    prompt: Sequence[int],
    max_tokens: int,
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> dict[str, Any]:
    """A greedy completion with its token ids, from an engine or a gateway."""
    answer = asked(url, prompt, max_tokens, headers, **more)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    said["headers"] = dict(answer.headers)
    return said


def asked(
    url: str,
    prompt: Sequence[int],
    max_tokens: int,
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> httpx.Response:
    """As `complete`, whatever the answer."""
    body = {
        "model": SERVED,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=ANSWER_S)


def tokens_of(said: Mapping[str, Any]) -> list[int]:
    return list(said["choices"][0]["token_ids"])


def counter(url: str, name: str, **labels: str) -> float:
    """One of an engine's own metrics, summed over the labels that are not given."""
    total = 0.0
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(
            f'{label}="{value}"' in line for label, value in labels.items()
        ):
            total += float(line.rpartition(" ")[2])
    return total


@contextmanager
def vllm(directory: Path, **changes: Any) -> Iterator[Vllm]:
    """An engine of its own, without a cluster, ready; killed with all that it started."""
    with started(directory, **changes) as engine:
        engine.wait_ready()
        yield engine


@contextmanager
def started(directory: Path, **changes: Any) -> Iterator[Vllm]:
    """As `vllm`, and not ready yet."""
    require_vllm()
    ports = EnginePorts(free_port(), *_consecutive(4), free_port())
    spec = EngineSpec(
        model=str(MODEL),
        served=SERVED,
        ports=ports,
        accelerated=False,
        context_tokens=CONTEXT_TOKENS,
        kv_cache_bytes=KV_CACHE_MIB << 20,
    )
    started = command(str(PROGRAM), replace(spec, **changes))
    log = directory / f"vllm-{ports.http}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            started.argv,
            env={**os.environ, **OFFLINE, **started.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Vllm(process, ports, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _consecutive(count: int) -> tuple[int, int]:
    """Ports for events and replay, each with as many behind it as there are ranks."""
    ports = free_ports(count)
    while ports[-1] - ports[0] != count - 1:
        ports = free_ports(count)
    return ports[0], ports[count // 2]
