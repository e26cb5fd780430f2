"""Two engines as processes: one prefills, the other one fetches and decodes; the same answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest

from tests.unit.workers.sim_process import sim

pytestmark = pytest.mark.anyio

STAGE = {"do_remote_decode": True, "do_remote_prefill": False}
PROMPT = [7 + n % 90 for n in range(300)]


class Client:
    """Asks engines as a gateway does."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def complete(
        self, url: str, transfer: object = None, *, request: str = "r", **fields: Any
    ) -> Any:
        body = {"prompt": PROMPT, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
        body |= {"kv_transfer_params": transfer, **fields}
        headers = {"X-Request-Id": request}
        async with self._session.post(
            url + "/v1/completions", json=body, headers=headers
        ) as answer:
            return answer.status, await answer.json()

    async def post(self, url: str, path: str, body: object) -> Any:
        async with self._session.post(url + path, json=body) as answer:
            return await answer.json()

    async def metric(self, url: str, name: str) -> float:
        async with self._session.get(url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])

    async def at_rest(self, url: str) -> None:
        """No block is in use, and none staged."""
        gauges = ("vllm:kv_cache_usage_perc", "sim:kv_staged_requests")
        with anyio.fail_after(30):
            while any([await self.metric(url, name) for name in gauges]):  # noqa: ASYNC110 it tells by no event
                await anyio.sleep(0.02)


@asynccontextmanager
async def pair(*options: str) -> AsyncIterator[tuple[Client, str, str]]:
    words = ("--kv-port", "0", "--speed", "20", *options)
    with sim(*words) as prefill, sim(*words) as decode:
        async with aiohttp.ClientSession() as session:
            yield Client(session), prefill.url, decode.url


def tokens(answer: Any) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


async def test_the_answer_is_that_of_one_engine_and_nothing_is_left_behind() -> None:
    async with pair() as (client, prefill, decode):
        _, whole = await client.complete(prefill)
        status, staged = await client.complete(prefill, STAGE, max_tokens=1)
        assert status == 200
        where = staged["kv_transfer_params"]
        assert where["do_remote_prefill"] and len(where["remote_block_ids"][0]) == 19
        assert await client.metric(prefill, "sim:kv_staged_requests") == 1
        status, answer = await client.complete(decode, where)
        assert (status, tokens(answer)) == (200, tokens(whole))
        assert await client.metric(decode, "vllm:external_prefix_cache_hits_total") == 300
        assert await client.metric(decode, "vllm:iteration_tokens_total_sum") == 12
        await client.at_rest(prefill)
        await client.at_rest(decode)
        status, late = await client.complete(decode, where, prompt=[5, *PROMPT])
        assert status == 500 and late["error"]["type"] == "KVLoadError"
        await client.at_rest(decode)


async def test_blocks_of_another_request_are_never_decoded_upon() -> None:
    async with pair() as (client, prefill, decode):
        other = [n % 50 + 9 for n in range(300)]
        _, staged = await client.complete(prefill, STAGE, max_tokens=1, prompt=other)
        status, answer = await client.complete(decode, staged["kv_transfer_params"])
        assert status == 500 and "not what it should be" in answer["error"]["message"]


async def test_recompute_answers_all_the_same_where_that_is_wanted() -> None:
    async with pair("--kv-load-failure-policy", "recompute") as (client, prefill, decode):
        _, whole = await client.complete(prefill)
        _, staged = await client.complete(prefill, STAGE, max_tokens=1)
        where = staged["kv_transfer_params"]
        assert await client.post(prefill, "/release_kv", where) == {"known": True}
        assert await client.post(prefill, "/release_kv", where) == {"known": False}
        status, answer = await client.complete(decode, where)
        assert (status, tokens(answer)) == (200, tokens(whole))
        await client.at_rest(prefill)


async def test_a_lease_that_nobody_reads_ends() -> None:
    async with pair("--kv-lease-s", "0.2") as (client, prefill, decode):
        _, staged = await client.complete(prefill, STAGE, max_tokens=1)
        await client.at_rest(prefill)
        status, _ = await client.complete(decode, staged["kv_transfer_params"])
        assert status == 500


async def test_an_abort_that_comes_late_releases_what_was_staged() -> None:
    async with pair() as (client, prefill, decode):
        status, staged = await client.complete(prefill, STAGE, max_tokens=1, request="mine")
        assert status == 200
        assert await client.post(prefill, "/abort_requests", {"request_ids": ["other"]}) == {
            "known": False
        }
        assert await client.post(prefill, "/abort_requests", {"request_ids": ["mine"]}) == {
            "known": True
        }
        await client.at_rest(prefill)
        status, _ = await client.complete(decode, staged["kv_transfer_params"])
        assert status == 500


async def test_both_legs_may_be_asked_at_once() -> None:
    async with pair("--kv-overlapped") as (client, prefill, decode):
        _, whole = await client.complete(prefill)
        async with (
            aiohttp.ClientSession() as session,
            session.get(prefill + "/server_info") as info,
        ):
            told = (await info.json())["vllm_config"]["kv_transfer"]
        host, port = told["bootstrap"].split(":")
        room = {"bootstrap_host": host, "bootstrap_port": int(port), "bootstrap_room": 4711}
        answers: list[Any] = []

        async def decode_leg() -> None:
            answers.append(await client.complete(decode, {"do_remote_prefill": True, **room}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(decode_leg)
            await client.complete(prefill, {"do_remote_decode": True, **room}, max_tokens=1)
        assert answers[0][0] == 200 and tokens(answers[0][1]) == tokens(whole)
        await client.at_rest(prefill)


async def test_a_client_that_leaves_frees_both_sides() -> None:
    async with pair("--kv-bytes-per-s", "100000") as (client, prefill, decode):
        _, staged = await client.complete(prefill, STAGE, max_tokens=1)
        with anyio.move_on_after(0.5) as left:
            await client.complete(decode, staged["kv_transfer_params"])
        assert left.cancelled_caught
        await client.at_rest(decode)
        await client.at_rest(prefill)
        status, _ = await client.complete(decode)
        assert status == 200


async def test_dg16_who_refuses_a_request_gives_its_blocks_back_at_once() -> None:
    async with pair("--kv-lease-s", "600") as (client, prefill, decode):
        _, staged = await client.complete(prefill, STAGE, max_tokens=1)
        where = staged["kv_transfer_params"]
        status, _ = await client.complete(decode, where, max_tokens=1_000_000)
        assert status == 400
        await client.at_rest(prefill)
