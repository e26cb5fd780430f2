"""Prefill on one real engine, decode on another: the tokens are those of an engine alone.

Each leg is sent as a gateway sends it. Whatever goes wrong on the way ends in an error, or in
tokens that are right.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.vllm import (
    BLOCK_TOKENS,
    SERVED,
    Vllm,
    new_prompt,
    started,
    tokens_of,
    vllm,
)
from workers.launch.spec import Connector, Phase

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

REQUESTS = 100
ANSWER_TOKENS = 24
LEASE_S = 8
STAGE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
EXTERNAL = "vllm:external_prefix_cache_hits_total"
COMPUTED = ("vllm:prompt_tokens_by_source_total", "local_compute")

Expected = list[tuple[list[int], list[int]]]
"""Prompts, and what an engine says to each alone."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    rng = random.Random(11)
    prompts = [new_prompt(rng, rng.randrange(40, 400)) for _ in range(REQUESTS)]
    with vllm(tmp_path_factory.mktemp("alone")) as alone:
        return [(prompt, tokens_of(alone.complete(prompt, ANSWER_TOKENS))) for prompt in prompts]


@contextmanager
def pair(directory: Path, **changes: Any) -> Iterator[tuple[Vllm, Vllm]]:
    """A prefill engine and a decode engine, started together."""
    with ExitStack() as stack:
        engines = [
            stack.enter_context(started(directory, phase=phase, core=core, **changes))
            for core, phase in enumerate((Phase.PREFILL, Phase.DECODE))
        ]
        for engine in engines:
            engine.wait_ready()
        yield engines[0], engines[1]


def stage(prefill: Vllm, prompt: Sequence[int]) -> dict[str, Any]:
    """The prefill leg; returns where the blocks lie."""
    said = prefill.complete(prompt, 1, kv_transfer_params=STAGE)
    handle: dict[str, Any] = said["kv_transfer_params"]
    return handle


def whole_blocks(prompt: Sequence[int]) -> int:
    """Tokens of those that the connector looks for: of what comes before the last two."""
    return (len(prompt) - 2) // BLOCK_TOKENS * BLOCK_TOKENS


def test_files_in_a_shared_directory(tmp_path: Path, expected: Expected) -> None:
    """Without native parts: what the decode engine lacks it finds by the prompt itself."""
    directory = tmp_path / "kv"
    directory.mkdir()
    with pair(tmp_path, connector=Connector.SHARED, shared_directory=directory) as (one, other):
        for prompt, answer in expected:
            one.complete(prompt, 1)
            assert tokens_of(other.complete(prompt, ANSWER_TOKENS)) == answer
        assert other.counter(EXTERNAL) == sum(whole_blocks(prompt) for prompt, _ in expected)


def test_nixl(tmp_path: Path, expected: Expected) -> None:
    with pair(tmp_path, connector=Connector.NIXL, lease_s=LEASE_S) as (prefill, decode):
        same_tokens(prefill, decode, expected)
        another_request_s_blocks_are_noticed(prefill, decode, expected)
        an_expired_lease_gives_no_wrong_token(prefill, decode, expected)
        a_killed_prefill_engine_gives_no_wrong_token(prefill, decode, expected)


def same_tokens(prefill: Vllm, decode: Vllm, expected: Expected) -> None:
    for prompt, answer in expected:
        handle = stage(prefill, prompt)
        said = decode.complete(prompt, ANSWER_TOKENS, kv_transfer_params=handle)
        assert tokens_of(said) == answer
    # It took them all from the other one, and prefilled nothing itself.
    assert decode.counter(EXTERNAL) == sum(len(prompt) for prompt, _ in expected)
    family, source = COMPUTED
    assert decode.counter(family, source=source) == 0


def another_request_s_blocks_are_noticed(prefill: Vllm, decode: Vllm, expected: Expected) -> None:
    """Else this suite would prove nothing: with the wrong blocks the tokens are wrong."""
    (one, answer), (other, _) = fresh(expected, prefill)
    handle, wrong = stage(prefill, one), stage(prefill, other)
    blocks = {"remote_block_ids": wrong["remote_block_ids"]}
    said = decode.complete(one, ANSWER_TOKENS, kv_transfer_params={**handle, **blocks})
    assert tokens_of(said) != answer


def an_expired_lease_gives_no_wrong_token(prefill: Vllm, decode: Vllm, expected: Expected) -> None:
    (prompt, answer), _ = fresh(expected, prefill)
    handle = stage(prefill, prompt)
    wait_for_expiry(prefill)
    right_or_refused(decode, prompt, handle, answer)


def a_killed_prefill_engine_gives_no_wrong_token(
    prefill: Vllm, decode: Vllm, expected: Expected
) -> None:
    (prompt, answer), _ = fresh(expected, prefill)
    handle = stage(prefill, prompt)
    os.killpg(prefill.process.pid, signal.SIGKILL)
    prefill.process.wait()
    right_or_refused(decode, prompt, handle, answer)
    # And the decode engine serves on, by itself.
    again, reply = expected[0]
    assert tokens_of(decode.complete(again, ANSWER_TOKENS)) == reply


def right_or_refused(
    decode: Vllm, prompt: Sequence[int], handle: dict[str, Any], answer: list[int]
) -> None:
    body = {
        "model": SERVED,
        "prompt": list(prompt),
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "kv_transfer_params": handle,
    }
    said = httpx.post(f"{decode.url}/v1/completions", json=body, timeout=120)
    if said.status_code == 200:
        assert tokens_of(said.json()) == answer
    else:
        assert said.status_code >= 500 and said.json()["error"]["message"]


def fresh(expected: Expected, prefill: Vllm) -> Expected:
    """Two prompts that the decode engine has not seen, and their answers."""
    rng = random.Random(len(expected) + time.monotonic_ns())
    prompts = [new_prompt(rng, 7 * BLOCK_TOKENS) for _ in range(2)]
    return [(prompt, tokens_of(prefill.complete(prompt, ANSWER_TOKENS))) for prompt in prompts]


def wait_for_expiry(prefill: Vllm) -> None:
    """Until the prefill engine counts a lease that nobody took up."""
    name, until_s = "vllm:nixl_num_kv_expired_reqs_total", time.monotonic() + 10 * LEASE_S
    rng = random.Random(3)
    while prefill.counter(name) < 1:
        assert time.monotonic() < until_s, "the lease never ends"
        prefill.complete(new_prompt(rng, 5), 1)  # it looks after leases as it works
        time.sleep(0.2)
