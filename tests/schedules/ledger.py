"""The ledger: two routers that book, gateways that tell how requests fare, and a network between.

At any moment a ledger's sums are those of its bookings. Once ends that nobody lost have been told,
nothing is owed for their requests; after the silence, nothing at all.
"""

from __future__ import annotations

import random

from controlplane.router.ledger import Ledger
from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress, Withdrawn
from tests.schedules.network import NONE, Faults, Network, demand

FAULTS = Faults(lost=0.05, doubled=0.1, late=0.25, late_s=2.0)
SILENCE_S = 20.0
WORKERS = [WorkerId(name) for name in "abc"]
PHASES = (Phase.DISPATCHED, Phase.FIRST_TOKEN, Phase.ALIVE, Phase.ENDED)


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """One history. Raises `Violation`."""
    network = Network(rng, FAULTS, trace)
    ledgers = [Ledger(SILENCE_S), Ledger(SILENCE_S)]
    lives = [_Life(network, ledgers, RequestId(f"q{i}")) for i in range(rng.randrange(1, 8))]
    for _ in range(rng.randrange(10, 60)):
        rng.choice(lives).goes_on()
        network.run(rng.expovariate(5))
        for ledger in ledgers:
            ledger.expire(network.now_s)
        _check(ledgers)
    network.faults = NONE
    network.say("quiet now")
    network.run(FAULTS.late_s + 1)
    for life in lives:
        life.ends()
    network.run(1.0)
    _check(ledgers)
    said = [
        [(b.worker, b.request) for b in each.bookings((WorkerId(""), RequestId("")))]
        for each in ledgers
    ]
    open_ = {(life.worker, life.request) for life in lives}
    demand(not open_ & set(said[0] + said[1]), "ended, and yet owed:", said)
    for ledger in ledgers:
        ledger.expire(network.now_s + SILENCE_S + 1)
    _check(ledgers)
    demand(not any(map(len, ledgers)), "silent, and yet kept:", ledgers)


class _Life:
    """One request: its attempts, one after the other, and what is said of them."""

    def __init__(self, network: Network, ledgers: list[Ledger], request: RequestId) -> None:
        self._network = network
        self._ledgers = ledgers
        self.request = request
        self.worker = WORKERS[0]
        self._attempt = 0
        self._phase = len(PHASES)

    def goes_on(self) -> None:
        """The next word of this attempt, or another attempt."""
        rng = self._network.rng
        if self._phase >= len(PHASES):
            self._begin()
        elif rng.random() < 0.1:
            self.ends()
            self._begin()
        elif rng.random() < 0.05:
            self._withdraw()
        else:
            self._tell(PHASES[self._phase])
            self._phase += 1

    def ends(self) -> None:
        """However far it has come."""
        if self._attempt:
            self._tell(Phase.ENDED)
            self._phase = len(PHASES)

    def _begin(self) -> None:
        rng = self._network.rng
        self._attempt, self._phase, self.worker = self._attempt + 1, 0, rng.choice(WORKERS)
        booking = Booking(self.request, self.worker, rng.randrange(1, 900), 7, self._attempt)
        here, there = rng.sample(self._ledgers, 2)
        what = f"booked {self.request} {self._attempt} on {self.worker}"
        self._network.say(what)
        here.book(booking, self._network.now_s)
        self._network.send(f"{what}, told", lambda: there.book(booking, self._network.now_s))

    def _withdraw(self) -> None:
        withdrawn = Withdrawn(self.request, self._attempt)
        for ledger in self._ledgers:
            self._network.send(
                f"withdrawn {self.request} {self._attempt}",
                lambda each=ledger: each.withdraw(withdrawn, self._network.now_s),  # type: ignore[misc]
            )

    def _tell(self, phase: Phase) -> None:
        word = Progress(self.request, self.worker, self._attempt, phase)
        for ledger in self._ledgers:
            self._network.send(
                f"{phase.name} {self.request} {self._attempt} on {self.worker}",
                lambda each=ledger: each.hear(word, self._network.now_s),  # type: ignore[misc]
            )


def _check(ledgers: list[Ledger]) -> None:
    for ledger in ledgers:
        bookings = list(ledger.bookings((WorkerId(""), RequestId(""))))
        demand(len(bookings) == len(ledger), "so many are counted:", len(ledger), bookings)
        for worker in WORKERS:
            owed, of_worker = ledger.of(worker), [b for b in bookings if b.worker == worker]
            counted = owed.requests, owed.prefill_tokens, owed.decode_blocks
            listed = (
                len(of_worker),
                sum(b.new_prefill_tokens for b in of_worker),
                sum(b.decode_blocks for b in of_worker),
            )
            demand(counted == listed, "sums do not add up:", worker, counted, listed)
