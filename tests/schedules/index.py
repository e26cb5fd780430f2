"""Index repair: agents that change, restart and are asked for snapshots, and the router's lanes.

At any moment: a lane that needs nothing shows what its agent had at that number. Once it is quiet:
every lane needs nothing, and shows what its agent has.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from controlplane.router.core import RouterCore
from controlplane.router.ingest import BadSnapshot, Lane, Snapshot
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, Tier
from proto.load import LoadReport
from tests.schedules.network import NONE, Faults, Network, demand
from tests.support.numbered_agent import NumberedAgent, Word
from tests.support.router_core import record

FAULTS = Faults(lost=0.05, doubled=0.05, late=0.15, late_s=0.5)
SETTINGS = RouterSettings()
AGENTS = 2
STEPS_MAX = 30
RETRY_S = 0.3
CHUNK_S = 0.004
QUIET_ROUNDS = 8


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """One history. Raises `Violation`."""
    network = Network(rng, FAULTS, trace)
    core = RouterCore(SETTINGS, "r", rng)
    readers = [_Reader(network, core, NumberedAgent(WorkerId(f"w{i}"))) for i in range(AGENTS)]
    for _ in range(rng.randrange(5, STEPS_MAX)):
        rng.choice(readers).something_happens()
        network.run(rng.expovariate(20))
    network.faults = NONE
    network.say("quiet now")
    for _ in range(QUIET_ROUNDS):
        for reader in readers:
            reader.agent_reports()
        network.run(1.0)
    for reader in readers:
        reader.check_quiet()


class _Reader:
    """One agent, and the router's side of it."""

    def __init__(self, network: Network, core: RouterCore, agent: NumberedAgent) -> None:
        self._network = network
        self._core = core
        self._agent = agent
        self._lane = Lane(agent.worker)
        self._fetching = False
        self._photos = 0
        core.worker_joined(record(agent.worker))

    def something_happens(self) -> None:
        """To the agent, or in the registry."""
        rng, agent = self._network.rng, self._agent
        roll = rng.random()
        if roll < 0.75:
            tier = rng.choice((Tier.GPU, Tier.GPU, Tier.HOST))
            stored, removed = (set(rng.sample(range(1, 40), rng.randrange(6))) for _ in range(2))
            word = agent.change(tier, stored, removed, rng.random() < 0.05)
            self._send(f"batch {agent.worker} {word[:2]} of {tier}", word)
        elif roll < 0.88:
            self.agent_reports()
        elif roll < 0.94:
            agent.restart()
            self._network.say("restarted:", agent.worker, agent.incarnation)
        else:
            life = agent.incarnation
            self._network.send(
                f"registered {agent.worker} {life}",
                lambda: self._apply(self._lane.registered(life)),
            )

    def agent_reports(self) -> None:
        """What the agent holds, summed up."""
        report, life = self._agent.report(), self._agent.incarnation
        what = f"report {report.worker} {life} {report.kv_sequence}"
        self._network.send(what, lambda: self._check(report, life))

    def check_quiet(self) -> None:
        """Raises `Violation`."""
        worker = self._agent.worker
        demand(self._lane.needs is None, "quiet, and yet needs", worker, self._lane.needs)
        held, truth = self._core.known.held(worker), self._agent.summed_up()
        demand(held == truth, "wrong for good:", worker, held, "is not", truth)

    def _send(self, what: str, word: Word) -> None:
        self._network.send(what, lambda: self._apply(self._lane.offer(*word)))

    def _check(self, report: LoadReport, life: int) -> None:
        if life >= self._lane.incarnation:
            held = self._core.known.held(report.worker)
            self._apply(self._lane.check(report, life, held))

    def _apply(self, batches: Sequence[KvBatch]) -> None:
        for batch in batches:
            self._core.apply(batch)
        self._check_truth()
        if self._lane.needs and not self._fetching:
            self._fetching = True
            self._network.after(0.01, f"fetch {self._agent.worker}", self._fetch)

    def _fetch(self) -> None:
        self._photos += 1
        chunks = self._agent.photograph(self._photos)
        self._ask(Snapshot(self._agent.worker), iter(chunks))

    def _ask(self, snapshot: Snapshot, chunks: Iterator[KvSnapshotChunk]) -> None:
        """One chunk after the other; any may be lost, and then it is all for nothing."""
        network = self._network
        if network.rng.random() < network.faults.lost:
            network.say("a chunk is lost:", self._agent.worker)
            self._fetching = False
            self._apply(self._lane.make_do())
            return
        snapshot.add(next(chunks))
        if snapshot.complete:
            network.after(CHUNK_S, "install", lambda: self._install(self._lane.install(snapshot)))
        else:
            network.after(CHUNK_S, "next chunk", lambda: self._ask(snapshot, chunks))

    def _install(self, pieces: Iterator[KvBatch]) -> None:
        """A piece at a time; batches come in between."""
        try:
            self._core.apply(next(pieces))
        except (StopIteration, BadSnapshot):
            self._fetching = False
            self._network.after(RETRY_S, "look again", lambda: self._apply(()))
        else:
            self._network.after(CHUNK_S, "next piece", lambda: self._install(pieces))

    def _check_truth(self) -> None:
        lane, worker = self._lane, self._agent.worker
        if lane.needs is None and lane.incarnation:
            held = self._core.known.held(worker)
            truth = self._agent.past[lane.incarnation, lane.sequence]
            demand(held == truth, "wrong and content:", worker, held, "is not", truth)
