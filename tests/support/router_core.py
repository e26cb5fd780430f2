"""Workers, prompts and questions, as tests of routers have them."""

from __future__ import annotations

import random

import msgspec

from controlplane.router.core import RouterCore
from controlplane.router.settings import RouterSettings
from proto.hashing import BlockHasher, Scope, pack
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.route import Chosen, RouteReply, RouteRequest
from proto.workers import WorkerRecord, WorkerState

BLOCK = 16
PROMPT = list(range(320))


def record(name: str, **other: object) -> WorkerRecord:
    fields: dict[str, object] = {
        "worker": name,
        "incarnation": 1,
        "model": "m",
        "engine": "sim",
        "url": f"http://{name}",
        "state": WorkerState.READY,
        "block_tokens": BLOCK,
        "total_blocks": 1_000,
    }
    return WorkerRecord.model_validate({**fields, **other})


def router(*names: str, policy: str = "kv") -> RouterCore:
    core = RouterCore(RouterSettings(policy=policy), "r", random.Random(0))
    for name in names:
        core.worker_joined(record(name))
    return core


def names_of(tokens: list[int], scope: Scope | None = None) -> bytes:
    return pack(BlockHasher(b"k", scope or Scope("m"), BLOCK).names(tokens))


def question(request: str = "1", **other: object) -> RouteRequest:
    return msgspec.structs.replace(
        RouteRequest(RequestId(request), "m", len(PROMPT), {BLOCK: names_of(PROMPT)}), **other
    )


def ask(core: RouterCore, request: str = "1", now_s: float = 0.0, **other: object) -> RouteReply:
    return core.decide(question(request, **other), now_s)


def chosen(reply: RouteReply) -> Chosen:
    assert isinstance(reply, Chosen)
    return reply


def report(name: str = "a", **other: object) -> LoadReport:
    return msgspec.structs.replace(LoadReport(WorkerId(name), 0, 0, 0, 0, 0, 0, 0, 0, 0), **other)
