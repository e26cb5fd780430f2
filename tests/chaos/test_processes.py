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
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import psutil
import pytest

from proto.wire.http import HttpClient
from tests.chaos.faults import Fault, inflict, pairs, singles
from tests.chaos.load import Load, Verdict, predicted_and_actual, questions
from tests.support.up import UpCluster, up

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

ENGINES, ROUTERS = 3, 2
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PAIRS = int(os.environ.get("CHAOS_PAIRS", "12"))
CALM_STREAMS = 40
"""So many whole streams in a row, begun after the trouble, and it is over."""
RECOVERY_S_MAX = 60.0
DESCRIPTORS_MORE = 12
"""Connections that were not needed yet at the first count."""
PROMPTS = [f"Story number {n}. " + "Once upon a time there was a token. " * 12 for n in range(24)]
GATEWAY = "gateway"


@dataclass(frozen=True)
class Row:
    """What one fault did."""

    faults: tuple[Fault, ...]
    recovered_s: float
    verdicts: Counter[Verdict]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    options = ("--engines", str(ENGINES), "--routers", str(ROUTERS), "--speed", "2")
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
            before = _descriptors(cluster)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                for number, faults in enumerate(schedule):
                    row = await _one(cluster, load, faults)
                    with capsys.disabled():
                        print(_line(number, len(schedule), row), flush=True)
                    _judge(load, row)
                tasks.cancel_scope.cancel()
            await _nothing_left(cluster, load, before)
            with capsys.disabled():
                print(f"seed {SEED}: {len(schedule)} faults, streams: {_told(load.count())}")

    anyio.run(play)


async def _one(cluster: UpCluster, load: Load, faults: tuple[Fault, ...]) -> Row:
    """Inflict it under load, and wait until streams are whole again."""
    began_s = time.monotonic()
    await anyio.to_thread.run_sync(inflict, cluster, faults)
    over_s = time.monotonic()
    with anyio.fail_after(RECOVERY_S_MAX):
        while not _calm(load, over_s):
            await load.next_end()
    disturbed = [e.at_s for e in load.since(began_s) if e.verdict is not Verdict.WHOLE]
    return Row(faults, max([0.0, *(at_s - began_s for at_s in disturbed)]), load.count(began_s))


def _calm(load: Load, since_s: float) -> bool:
    latest = [each for each in load.ended if each.began_s >= since_s][-CALM_STREAMS:]
    return len(latest) == CALM_STREAMS and all(e.verdict is Verdict.WHOLE for e in latest)


def _judge(load: Load, row: Row) -> None:
    wrong = [each.detail for each in load.ended if each.verdict is Verdict.WRONG]
    assert wrong == [], f"after {_named(row.faults)}"
    if all(fault.part != GATEWAY for fault in row.faults):
        lost = row.verdicts[Verdict.CUT] + row.verdicts[Verdict.UNREACHABLE]
        assert lost == 0, f"streams were lost, and it was not the gateway: {_named(row.faults)}"


async def _nothing_left(cluster: UpCluster, load: Load, before: dict[int, int]) -> None:
    admin, engines = cluster.state["gateway_admin"], cluster.state["engines"]

    def quiet() -> bool:
        in_flight = cluster.gauge(admin, "tokenplane_gateway_requests_in_flight")
        running = [
            cluster.gauge(url, f"vllm:num_requests_{what}")
            for url in engines
            for what in ("running", "waiting")
        ]
        return in_flight == 0 and not any(running)

    await anyio.to_thread.run_sync(partial(cluster.wait_until, quiet, "no request in flight"))
    for question in load.questions:
        await predicted_and_actual(load, question)
    for question in load.questions:
        # A prompt that was just asked is in some cache whole, and the router knows in which.
        predicted, actual = await predicted_and_actual(load, question)
        assert predicted == actual > 0
    after = _descriptors(cluster)
    grown = {pid: after[pid] - before[pid] for pid in before.keys() & after.keys()}
    assert all(more <= DESCRIPTORS_MORE for more in grown.values()), grown


def _descriptors(cluster: UpCluster) -> dict[int, int]:
    """Open file descriptors of each process of the cluster."""
    pids = [cluster.process.pid, *cluster.pids().values()]
    return {pid: psutil.Process(pid).num_fds() for pid in pids}


def _line(number: int, total: int, row: Row) -> str:
    return (
        f"{number + 1:3}/{total} {_named(row.faults):<44} "
        f"last trouble after {row.recovered_s:5.1f} s   {_told(row.verdicts)}"
    )


def _named(faults: Sequence[Fault]) -> str:
    return " and ".join(map(str, faults))


def _told(verdicts: Counter[Verdict]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
