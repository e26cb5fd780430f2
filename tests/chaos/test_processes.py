"""Every part of a live cluster gets into every kind of trouble, alone and in pairs, under load.

    make chaos                                  # all of it, some minutes
    CHAOS_SEED=7 CHAOS_PAIRS=40 make chaos      # another history, a longer one

Whatever happens: no stream says a wrong token or looks whole without being so, each ends in one
typed way, and afterwards nothing is left: no slot, no booking, no file descriptor, no process, and
what the router believes of caches is what the engines report.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from functools import partial

import anyio
import anyio.to_thread
import pytest

from proto.wire.http import HttpClient
from tests.chaos.faults import Fault, inflict, pairs, singles
from tests.chaos.load import Load, questions
from tests.chaos.trial import descriptors, judge, nothing_left, suffer, told
from tests.support.up import UpCluster, up

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

ENGINES = 3
FORMS = {"routers": ("--routers", "2"), "own routers": ("--routers", "0", "--gateways", "2")}
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PAIRS = int(os.environ.get("CHAOS_PAIRS", "12"))
PROMPTS = [f"Story number {n}. " + "Once upon a time there was a token. " * 12 for n in range(24)]
GATEWAY = "gateway"


@pytest.fixture(scope="module", params=[*FORMS.values()], ids=[*FORMS])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpCluster]:
    options = ("--engines", str(ENGINES), *request.param, "--speed", "2")
    with up(tmp_path_factory.mktemp("up"), *options) as running:
        yield running


def test_no_stream_is_wrong_and_nothing_is_left(
    cluster: UpCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    parts = sorted(cluster.pids())
    schedule = [*singles(parts), *pairs(parts, PAIRS, rng)]

    async def play() -> None:
        async with HttpClient() as http:
            load = Load(http, cluster.url, cluster.model, [], rng)
            load.questions = await questions(load, PROMPTS)
            before = descriptors(cluster)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                for number, faults in enumerate(schedule):
                    row = await suffer(load, partial(_inflict, cluster, faults))
                    named = " and ".join(map(str, faults))
                    with capsys.disabled():
                        print(f"{number + 1:3}/{len(schedule)} {named:<44} {row}", flush=True)
                    hit = any(fault.part.startswith(GATEWAY) for fault in faults)
                    judge(load, row, named, gateway_hit=hit)
                tasks.cancel_scope.cancel()
            await nothing_left(cluster, load, before)
            with capsys.disabled():
                print(f"seed {SEED}: {len(schedule)} faults, streams: {told(load.count())}")

    anyio.run(play)


async def _inflict(cluster: UpCluster, faults: Sequence[Fault]) -> None:
    await anyio.to_thread.run_sync(inflict, cluster, faults)
