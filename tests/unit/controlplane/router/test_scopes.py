"""KR8, the whole way: prompts as gateways name them, against blocks as agents name them from
vLLM's events. Only the same tokens, for the same tenant and adapter, are the same blocks.
"""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from agents.adapters.vllm_events import VllmEvents
from agents.live import LiveSet
from agents.translator import Translator
from controlplane.gateway.openai import Api, Ask, read, salted
from controlplane.router.core import RouterCore
from controlplane.router.settings import RouterSettings
from proto.hashing import pack
from proto.ids import RequestId, WorkerId
from proto.kv import KvBatch
from proto.route import RouteRequest
from tests.support.gateway_world import (
    NO_HINTS,
    Client,
    whole,
    with_adapter,
    world,
)
from tests.support.router_core import BLOCK, chosen, record

SECRET = b"k"
WORKER = WorkerId("b")
BLOCKS = 4
PROMPT = list(range(BLOCKS * BLOCK))


def asked(model: str, *, salt: str = "", tenant: str = "") -> Ask:
    """A request as it comes from HTTP; `tenant` is the salt of one whose cache is private."""
    body = {
        "model": model,
        "prompt": PROMPT,
        "stream": True,
        **({"cache_salt": salt} if salt else {}),
    }
    ask = read(Api.COMPLETIONS, json.dumps(body).encode())
    return salted(ask, tenant) if tenant else ask


ASKS = (
    asked("m"),
    asked("lora"),
    asked("m", salt="x"),
    asked("m", tenant="x."),
    asked("m", tenant="y."),
    asked("m", tenant="x.", salt="y"),
    asked("lora", tenant="x."),
)


async def named(ask: Ask) -> RouteRequest:
    """What a gateway asks a router."""
    async with world(fleet=with_adapter("lora")) as ours:
        for engine in ("a", "b"):
            ours.engine(engine, whole)
        await ours.gateway.dispatcher.serve(RequestId("q"), ask, NO_HINTS, Client())
        return msgspec.structs.replace(ours.routed[0], explain=True)


def cached(ask: Ask) -> KvBatch:
    """What an agent says whose vLLM has computed that request."""
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(1, BLOCKS + 1)),
        "parent_block_hash": None,
        "token_ids": PROMPT,
        "block_size": BLOCK,
        "lora_name": "lora" if ask.model == "lora" else None,
        "extra_keys": [
            [
                *["lora"] * (ask.model == "lora"),
                *[ask.cache_salt] * (not k and ask.cache_salt != ""),
            ]
            for k in range(BLOCKS)
        ],
    }
    live = LiveSet()
    translator = Translator(live, SECRET, "m", BLOCK)
    for each in VllmEvents().read(msgspec.msgpack.encode([1.0, [event], 0])):
        translator.apply(each)
    [change] = live.take()
    return KvBatch(WORKER, pack(change.stored))


@pytest.mark.anyio
@pytest.mark.parametrize("which", range(len(ASKS)))
async def test_kr8_a_cache_answers_its_own_scope_only(which: int) -> None:
    core = RouterCore(RouterSettings(), "r", random.Random(0))
    core.worker_joined(record(WORKER, adapters=("lora",)))
    core.apply(cached(ASKS[which]))
    overlaps = []
    for ask in ASKS:
        request = await named(ask)
        overlaps.append(chosen(core.decide(request, 0.0)).terms[0].overlap_blocks)
    assert overlaps == [BLOCKS * (i == which) for i in range(len(ASKS))]
