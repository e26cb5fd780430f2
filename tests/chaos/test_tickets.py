"""`kill -9` of each part of a live split fleet at each state of a ticket, under load.

    python -m pytest -m chaos tests/chaos/test_tickets.py -s

Real processes, real NATS and etcd, real KV bytes. A fault point is a transition heard on the bus:
what is to die dies the moment that a ticket comes to the state. Every stream is whole or ends in
one typed error; afterwards no engine holds anything for anybody.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import product

import anyio
import anyio.to_thread
import pytest

from controlplane.runtime.carriers import open_bus
from controlplane.runtime.settings import BusSettings, CommonSettings
from proto.codec import Reader
from proto.subjects import Subjects
from proto.transfers import State, Transition
from proto.wire.errors import BusError
from proto.wire.http import HttpClient
from tests.chaos.faults import Fault, How, inflict
from tests.chaos.load import Load, Verdict, questions
from tests.support.up import UpCluster, up

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

ROLES = "2P2D"
SEED = int(os.environ.get("CHAOS_SEED", "0"))
STATES = (State.PREFILLING, State.STAGED, State.TRANSFERRING, State.RELEASED)
PARTS = ("prefill", "decode", "prefill agent", "decode agent", "transfer", "nats")
PROMPTS = [f"Story number {n}. " + "Once upon a time there was a token. " * 60 for n in range(16)]
FAULT_POINT_S = 60.0
CALM_STREAMS = 24
RECOVERY_S_MAX = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    words = ("--roles", ROLES, "--prefill", "remote", "--speed", "2")
    with up(tmp_path_factory.mktemp("up"), *words) as running:
        yield running


def test_whoever_dies_whenever(cluster: UpCluster, capsys: pytest.CaptureFixture[str]) -> None:
    async def play() -> None:
        rng = random.Random(SEED)
        async with HttpClient() as http:
            load = Load(http, cluster.url, cluster.model, [], rng, clients=4)
            load.questions = await questions(load, PROMPTS)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                for state, part in product(STATES, PARTS):
                    verdicts = await _one(cluster, load, state, part)
                    with capsys.disabled():
                        print(f"{part} at {state}: {dict(verdicts)}", flush=True)
                    assert verdicts[Verdict.WRONG] == 0, [e.detail for e in load.ended]
                    assert verdicts[Verdict.CUT] == verdicts[Verdict.UNREACHABLE] == 0
                tasks.cancel_scope.cancel()
            await anyio.to_thread.run_sync(
                partial(cluster.wait_until, partial(_at_rest, cluster), "every block to be let go")
            )
            with capsys.disabled():
                print(f"seed {SEED}: {dict(load.count())}")

    anyio.run(play)


async def _one(cluster: UpCluster, load: Load, state: State, part: str) -> Counter[Verdict]:
    """Kill it at the next ticket that comes to the state, and wait until streams are whole."""
    before = len(load.ended)
    name = await _at(cluster, state, part)
    await anyio.to_thread.run_sync(inflict, cluster, [Fault(name, How.KILL)])
    began = len(load.ended)
    with anyio.fail_after(RECOVERY_S_MAX):
        while not _calm(load, began):
            await load.next_end()
    return Counter(each.verdict for each in load.ended[before:])


def _calm(load: Load, since: int) -> bool:
    latest = load.ended[since:][-CALM_STREAMS:]
    return len(latest) == CALM_STREAMS and all(e.verdict is Verdict.WHOLE for e in latest)


async def _at(cluster: UpCluster, state: State, part: str) -> str:
    """The process that is meant, when the next ticket has come to the state."""
    name = str(cluster.state["cluster"])
    nats = BusSettings(servers=(str(cluster.state["nats"]),))
    settings = CommonSettings(cluster=name, nats=nats)
    reader = Reader[Transition](Transition)
    with anyio.fail_after(FAULT_POINT_S):
        while True:
            try:
                async with (
                    open_bus(settings, "chaos") as bus,
                    bus.subscribe(Subjects(name).transitions) as messages,
                ):
                    async for message in messages:
                        heard = reader.open(message.data).body
                        if heard.after is state:
                            return _victim(part, heard)
            except BusError:
                continue


def _victim(part: str, heard: Transition) -> str:
    engine = heard.prefill if part.startswith("prefill") else heard.decode
    if part.endswith("agent"):
        return f"agent-{engine.removeprefix('engine-')}"
    return engine if part in ("prefill", "decode") else part


def _at_rest(cluster: UpCluster) -> bool:
    gauges = ("vllm:kv_cache_usage_perc", "sim:kv_staged_requests", "vllm:num_requests_running")
    return not any(cluster.gauge(url, name) for url in cluster.state["engines"] for name in gauges)
