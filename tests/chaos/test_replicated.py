"""Three NATS servers and three members of etcd: who leads dies, freezes and restarts, under load.

Fleets with transfers, as tickets are what is kept on JetStream: where no leader takes them, decode
workers prefill by themselves. It may take JetStream ten seconds to find another leader.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import anyio
import anyio.to_thread
import pytest

from proto.subjects import Subjects
from proto.wire.http import HttpClient
from tests.chaos.faults import Fault, How, inflict
from tests.chaos.load import Load, Verdict, questions
from tests.chaos.replicated import COMMAND, ETCD, MEMBERS, NATS, Members
from tests.chaos.trial import at_rest, descriptors, descriptors_given_back, judge, suffer, told
from tests.support.up import PATIENCE_S, UpCluster, up

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("CHAOS_SEED", "0"))
PAIRS = int(os.environ.get("CHAOS_PAIRS", "12")) // 2
ONLY = os.environ.get("CHAOS_ONLY", "")
"""A role, such as `tickets`, where not all are wanted."""
FROZEN_S = 12.0
"""Longer than leaders may be silent, and than the leases of agents."""
PROMPTS = [f"Chapter {n}. " + "Once upon a time there was a token. " * 60 for n in range(16)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    words = ("--roles", "1P2D", "--prefill", "remote", "--speed", "2")
    with up(tmp_path_factory.mktemp("up"), *words, ready_s=PATIENCE_S, command=COMMAND) as running:
        yield running


def test_leaders_change_and_no_stream_is_lost(
    cluster: UpCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    members = Members(cluster)
    subjects = Subjects(str(cluster.state["cluster"]))
    streams = (subjects.requests_stream, f"KV_{subjects.tickets_bucket}")

    async def play() -> None:
        async with HttpClient() as http:
            load = Load(http, cluster.url, cluster.model, [], rng)
            load.questions = await questions(load, PROMPTS)
            assert [members.replicas(stream) for stream in streams] == [MEMBERS, MEMBERS]
            before = descriptors(cluster)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                schedule = [
                    each for each in (*_of_leaders(), *_pairs(rng)) if ONLY in " ".join(each[0])
                ]
                for number, (roles, hows) in enumerate(schedule):
                    parts = [await _part(cluster, members, streams, role) for role in roles]
                    faults = [Fault(part, how) for part, how in zip(parts, hows, strict=True)]
                    row = await suffer(load, partial(_inflict, cluster, faults))
                    named = " and ".join(
                        f"{fault} ({role})" for fault, role in zip(faults, roles, strict=True)
                    )
                    with capsys.disabled():
                        print(f"{number + 1:3}/{len(schedule)} {named:<72} {row}", flush=True)
                    judge(load, row, named, gateway_hit=False)
                tasks.cancel_scope.cancel()
            await at_rest(cluster)
            await descriptors_given_back(cluster, before)
            with capsys.disabled():
                print(f"seed {SEED}: {len(schedule)} faults, streams: {told(load.count())}")
            kept, served = members.stored(streams[0]), load.count()[Verdict.WHOLE]
            assert kept >= served, f"{served} streams were served, {kept} are on record"

    anyio.run(play)


Roles = tuple[str, ...]


def _of_leaders() -> Iterator[tuple[Roles, tuple[How, ...]]]:
    for role in ("requests", "tickets", "etcd"):
        for how in How:
            yield (role,), (how,)


def _pairs(rng: random.Random) -> Iterator[tuple[Roles, tuple[How, ...]]]:
    """One server of NATS and one of etcd together: whoever it is, a majority is left."""
    for _ in range(PAIRS):
        first, second = rng.choice(("requests", "tickets", *NATS)), rng.choice(("etcd", *ETCD))
        yield (first, second), (rng.choice(list(How)), rng.choice(list(How)))


async def _part(cluster: UpCluster, members: Members, streams: Sequence[str], role: str) -> str:
    """Who that is now."""
    leaders: dict[str, Callable[[], str | None]] = {
        "requests": partial(members.stream_leader, streams[0]),
        "tickets": partial(members.stream_leader, streams[1]),
        "etcd": members.etcd_leader,
    }
    if role not in leaders:
        return role
    ask = leaders[role]
    wait = partial(cluster.wait_until, lambda: ask() is not None, f"a leader of {role}")
    await anyio.to_thread.run_sync(wait)
    return ask() or role


async def _inflict(cluster: UpCluster, faults: Sequence[Fault]) -> None:
    await anyio.to_thread.run_sync(inflict, cluster, faults, FROZEN_S)
