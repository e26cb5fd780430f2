"""What engines publish of their caches: garbage is a loss, and what follows is heard."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from agents.adapters.protocol import EngineEvent, EngineUnfit
from agents.adapters.sglang_events import SglangEvents
from agents.adapters.trtllm_events import TrtllmEvents
from agents.adapters.vllm_events import VllmEvents
from agents.live import LiveSet
from agents.translator import Translator
from tests.fuzz.mutate import JSON_EXTREMES, changed_bytes, changed_value
from tests.recordings.reading import payloads

BLOCK_TOKENS = 4
TOKENS = list(range(8))
_VLLM = [
    payload
    for name in ("arrays-2", "arrays-3", "bytes-hashes", "maps-in-array", "maps-in-map")
    for payload in payloads(f"vllm/{name}")
]
_SGLANG = [
    msgspec.msgpack.encode([1.0, [["BlockStored", [1, 2], None, TOKENS, 4, None, "GPU"]], 0]),
    msgspec.msgpack.encode([1.0, [["BlockRemoved", [1], "CPU"], ["AllBlocksCleared"]], 0]),
]
_TRTLLM = [
    msgspec.json.encode(
        [
            {"event_id": 1, "data": {"type": "created", "num_blocks_per_cache_level": [9, 9]}},
            {
                "event_id": 2,
                "data": {
                    "type": "stored",
                    "parent_hash": None,
                    "blocks": [
                        {
                            "block_hash": 7,
                            "tokens": [{"token_id": t, "token_extra_id": 0} for t in range(4)],
                            "lora_id": None,
                            "cache_level": 0,
                            "priority": 50,
                        }
                    ],
                },
            },
            {"event_id": 3, "data": {"type": "removed", "block_hashes": [7]}},
        ]
    )
]


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """Some bad batches of one engine, and what becomes of them in an agent."""
    name, read, good, unpack, pack = rng.choice(_dialects())
    live = LiveSet()
    translator = Translator(live, b"secret", "m", BLOCK_TOKENS, total_blocks=8)
    for _ in range(rng.randrange(1, 10)):
        payload = rng.choice(good)
        roll = rng.random()
        if roll < 0.45:
            payload = changed_bytes(rng, payload, good)
        elif roll < 0.9:
            extremes = JSON_EXTREMES if name == "trtllm" else ()
            tree = unpack(payload)
            payload = pack(changed_value(rng, tree, *([extremes] if extremes else [])))
        if trace is not None:
            trace.append(f"{name} {payload.hex()}")
        try:
            for event in read(payload):
                translator.apply(event)
        except EngineUnfit:
            return
        live.take()


Read = Callable[[bytes], list[EngineEvent]]


def _dialects() -> list[
    tuple[str, Read, list[bytes], Callable[[bytes], Any], Callable[[Any], bytes]]
]:
    msgpack, json = msgspec.msgpack, msgspec.json
    return [
        ("vllm", VllmEvents().read, _VLLM, msgpack.decode, msgpack.encode),
        ("sglang", SglangEvents(0).read, _SGLANG, msgpack.decode, msgpack.encode),
        ("trtllm", TrtllmEvents(BLOCK_TOKENS).read, _TRTLLM, json.decode, json.encode),
    ]
