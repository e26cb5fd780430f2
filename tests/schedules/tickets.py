"""Tickets: steps that are asked for late, twice and by who was replaced, and duties that get done.

At any moment: a ticket that has ended stays as it ended; fence and sequence never go back, and what
is refused changes nothing. Once it is quiet: its deadline ends it, and when what it owes is done or
void nobody is owed anything.
"""

from __future__ import annotations

import random

from controlplane.transfer.ticket import (
    NOTHING,
    News,
    Patience,
    Refused,
    check_fence,
    over,
    settle,
    step,
)
from proto.ids import RequestId, ServiceId, WorkerId
from proto.transfers import TERMINAL, Duty, End, Step, Ticket, TicketId
from proto.workers import HandoffOrder
from tests.schedules.network import Faults, Network, demand

FAULTS = Faults(lost=0.1, doubled=0.1, late=0.3, late_s=20.0)
PATIENCE = Patience()
WAY = (Step.RESERVE, Step.PREFILL, Step.STAGE, Step.TRANSFER, Step.LAND, Step.RELEASE)
"""How it should go; other steps come in between."""


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """One history. Raises `Violation`."""
    network = Network(rng, FAULTS, trace)
    ticket = _Ticket(network, rng.choice(list(HandoffOrder)))
    for _ in range(rng.randrange(3, 40)):
        what = rng.choice(WAY) if rng.random() < 0.8 else rng.choice(list(Step))
        ticket.ask(what)
        network.run(rng.expovariate(0.5))
        ticket.deadline()
    network.run(FAULTS.late_s)
    for _ in range(4):
        network.run(max(PATIENCE.prefill_s, PATIENCE.transfer_s) + 1)
        ticket.deadline()
    ticket.check_over()


class _Ticket:
    """One ticket, and all who ask something of it."""

    def __init__(self, network: Network, order: HandoffOrder) -> None:
        self._network = network
        self._ends = 0
        self._now = Ticket(
            TicketId("t"),
            RequestId("r"),
            "m",
            ServiceId("g"),
            order,
            self._end("p"),
            self._end("d"),
            lease_s=30.0,
            deadline_s=PATIENCE.planned_s,
        )

    def ask(self, what: Step) -> None:
        """Somebody asks, under the fence of this moment; it may come when that is another."""
        fence = self._now.fence
        self._network.send(f"{what} under fence {fence}", lambda: self._take(what, fence))

    def deadline(self) -> None:
        """What a coordinator does when time is up."""
        if self._now.state not in TERMINAL and self._network.now_s >= self._now.deadline_s:
            self._take(Step.EXPIRE, self._now.fence)
        for duty in self._now.owed:
            if duty.until_s <= self._network.now_s:
                self._settle(duty)

    def check_over(self) -> None:
        """Raises `Violation`."""
        demand(over(self._now), "quiet, and yet not over:", self._now)

    def _take(self, what: Step, fence: int) -> None:
        before = self._now
        news = NOTHING
        if what in (Step.OTHER_PREFILL, Step.OTHER_DECODE):
            news = News(other=self._end("p" if what is Step.OTHER_PREFILL else "d"))
        try:
            check_fence(before, fence)
            after = step(before, what, self._network.now_s, PATIENCE, news)
        except Refused as refusal:
            self._network.say("refused:", refusal)
            return
        self._network.say("now", after.state, f"fence {after.fence}, owes {len(after.owed)}")
        demand(before.state not in TERMINAL, "it had ended:", before.state, what)
        demand(after.fence >= before.fence, "the fence went back:", before.fence, after.fence)
        demand(after.sequence == before.sequence + 1, "a step was not counted:", after.sequence)
        demand(set(before.owed) <= set(after.owed), "a duty was forgotten:", before.owed)
        self._now = after
        for duty in after.owed[len(before.owed) :]:
            self._network.send(f"done: {duty.verb}", lambda each=duty: self._settle(each))  # type: ignore[misc]

    def _settle(self, duty: Duty) -> None:
        self._now = settle(self._now, duty)

    def _end(self, kind: str) -> End:
        self._ends += 1
        name = f"{kind}{self._ends}"
        return End(WorkerId(name), 1, f"http://{name}", "sim")
