"""The ways between processes, servers and engines are slow, silent, half silent or cut, under load.

    make chaos                                  # all of it, some minutes
    CHAOS_SEED=7 CHAOS_PAIRS=40 make chaos      # other pairs, more of them
    CHAOS_ONLY='agent-0>etcd held' ...          # those of that name alone

Each link has every kind of trouble for some seconds, and those that matter most are silent for
longer than a lease. Then clocks are wrong by an hour; then come pairs of any trouble of a link or
a process. Whatever happens: what must hold of `test_processes.py` holds, and a client never sees
that a way was bad.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import pytest

from proto.wire.http import HttpClient
from tests.chaos.faults import Fault, How, inflict
from tests.chaos.linked import COMMAND, Links, clock_of, names
from tests.chaos.load import Load, questions
from tests.chaos.trial import descriptors, judge, nothing_left, suffer, told
from tests.support.link import Trouble
from tests.support.up import PATIENCE_S, UpCluster, up

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

ENGINES = 2
SERVICES = ("registry", "router-0", "router-1", "gateway")
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PAIRS = int(os.environ.get("CHAOS_PAIRS", "12"))
ONLY = os.environ.get("CHAOS_ONLY", "")
TROUBLE_S = 3.0
LONG_S = 16.0
"""Longer than the lease of an agent, and than it takes to give up a silent server."""
LONG = (
    *("agent-0>nats", "agent-0>etcd", "router-0>nats", "router-0>etcd", "gateway>nats"),
    *("gateway>etcd", "gateways>engine-0", "agent-0>engine-0", "agent-0>engine-0 events"),
)
TWINS = ("router-1", "agent-1", "engine-1")
"""Whose links are as those of the others."""
PROMPTS = [f"Voyage number {n}. " + "The token went over the sea. " * 12 for n in range(24)]
GATEWAY = "gateway"


@dataclass(frozen=True)
class Bad:
    """A link in trouble."""

    link: str
    trouble: Trouble
    seconds: float = TROUBLE_S

    def __str__(self) -> str:
        return f"{self.link} {self.trouble} for {self.seconds:g} s"


@dataclass(frozen=True)
class Clock:
    """A part's wall clock is set, and it is killed: so the next life begins at that time. Later
    its clock is put right."""

    part: str
    by_s: float

    def __str__(self) -> str:
        return f"{self.part} clock {self.by_s:+g} s, kill -9"


Mishap = Bad | Fault | Clock


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    words = ("--engines", str(ENGINES), "--routers", "2", "--speed", "2")
    with up(tmp_path_factory.mktemp("up"), *words, ready_s=PATIENCE_S, command=COMMAND) as running:
        yield running


def test_bad_ways_cost_no_client_anything(
    cluster: UpCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    schedule = [
        mishaps
        for mishaps in (*_singles(), *_pairs(sorted(cluster.pids()), rng))
        if ONLY in _named(mishaps)
    ]

    async def play() -> None:
        links = Links(cluster)
        async with HttpClient() as http:
            load = Load(http, cluster.url, cluster.model, [], rng)
            load.questions = await questions(load, PROMPTS)
            before = descriptors(cluster)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                for number, mishaps in enumerate(schedule):
                    row = await suffer(load, partial(_happen, cluster, links, mishaps))
                    named = _named(mishaps)
                    with capsys.disabled():
                        print(f"{number + 1:3}/{len(schedule)} {named:<60} {row}", flush=True)
                    killed = [each.part for each in mishaps if not isinstance(each, Bad)]
                    judge(load, row, named, gateway_hit=GATEWAY in killed)
                tasks.cancel_scope.cancel()
            await nothing_left(cluster, load, before)
            with capsys.disabled():
                print(f"seed {SEED}: {len(schedule)} faults, streams: {told(load.count())}")

    anyio.run(play)


def _singles() -> Iterator[tuple[Mishap, ...]]:
    for link in names(ENGINES, SERVICES):
        if not any(twin in link for twin in TWINS):
            yield from ((Bad(link, trouble),) for trouble in Trouble)
    for link in LONG:
        yield (Bad(link, Trouble.HELD, LONG_S),)
    for part in ("agent-0", "router-0", "registry", GATEWAY):
        yield from ((Clock(part, by_s),) for by_s in (-3_600.0, 3_600.0))


def _pairs(parts: Sequence[str], rng: random.Random) -> Iterator[tuple[Mishap, ...]]:
    links = names(ENGINES, SERVICES)
    for _ in range(PAIRS):
        first = Bad(rng.choice(links), rng.choice(list(Trouble)))
        second: Mishap = Bad(rng.choice(links), rng.choice(list(Trouble)))
        if rng.random() < 0.5:
            second = Fault(rng.choice(parts), rng.choice(list(How)))
        yield first, second


def _named(mishaps: Sequence[Mishap]) -> str:
    return " and ".join(map(str, mishaps))


async def _happen(cluster: UpCluster, links: Links, mishaps: Sequence[Mishap]) -> None:
    """All at once; until ways are good again and every process is up."""
    async with anyio.create_task_group() as tasks:
        for each in mishaps:
            if isinstance(each, Bad):
                tasks.start_soon(_be_bad, links, each)
            elif isinstance(each, Clock):
                tasks.start_soon(_set, cluster, each)
            else:
                tasks.start_soon(_inflict, cluster, each)
    await anyio.to_thread.run_sync(cluster.wait_ready, PATIENCE_S)


async def _inflict(cluster: UpCluster, fault: Fault) -> None:
    await anyio.to_thread.run_sync(inflict, cluster, [fault])


async def _set(cluster: UpCluster, clock: Clock) -> None:
    off = clock_of(cluster.home, clock.part)
    off.write_text(str(clock.by_s))
    await anyio.sleep(TROUBLE_S / 2)
    await _inflict(cluster, Fault(clock.part, How.KILL))
    off.unlink()
    await anyio.sleep(TROUBLE_S / 2)


async def _be_bad(links: Links, bad: Bad) -> None:
    await links.be(bad.link, bad.trouble)
    await anyio.sleep(bad.seconds)
    await links.be(bad.link, None)
