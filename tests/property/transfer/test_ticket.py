"""The life of tickets against a naive model: a set of arrows, and a list of what was done."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.transfer.ticket import (
    Fenced,
    News,
    Patience,
    Refused,
    check_fence,
    over,
    settle,
    step,
)
from proto.ids import RequestId, ServiceId, WorkerId
from proto.transfers import TERMINAL, End, Purpose, State, Step, Ticket, TicketId, Verb
from proto.workers import HandoffOrder

PATIENCE = Patience()
LEASE_S = 30.0
ENDS = (Step.FAIL, Step.EXPIRE, Step.CANCEL)


def end(name: str) -> End:
    return End(WorkerId(name), 1, f"http://{name}", "sim")


def fresh(
    order: HandoffOrder = HandoffOrder.PREFILL_FIRST, purpose: Purpose = Purpose.HANDOFF
) -> Ticket:
    return Ticket(
        TicketId("t"),
        RequestId("r"),
        "m",
        ServiceId("g"),
        order,
        end("p0"),
        end("d0"),
        purpose,
        lease_s=LEASE_S,
    )


@dataclass
class Naive:
    """What an engineer would draw on a board: who holds what at this moment."""

    overlapped: bool
    copy: bool = False
    state: str = "planned"
    prefill_busy: bool = False
    staged: bool = False
    reading: bool = False
    cancelling: bool = False
    staged_s: float = 0.0
    prefills: int = 0
    decodes: int = 0
    owed: list[tuple[str, str]] = field(default_factory=list)

    def ends(self, state: str) -> None:
        prefill, decode = f"p{self.prefills}", f"d{self.decodes}"
        if self.reading:
            self.owed.append((decode, "abort"))
        if self.staged or self.reading:
            self.owed.append((prefill, "release"))
        elif self.prefill_busy:
            self.owed.append((prefill, "abort"))
        self.state, self.prefill_busy = state, False
        self.staged = self.reading = self.cancelling = False

    def fresh_enough(self, now_s: float) -> bool:
        return not self.staged or now_s < self.staged_s + LEASE_S - PATIENCE.lease_margin_s

    def do(self, what: Step, now_s: float) -> bool:
        """False: that cannot be."""
        if self.state in ("released", "failed", "expired", "cancelled"):
            return False
        if what in ENDS:
            return self._end(what)
        if self.cancelling:
            if what is not Step.LAND:
                return False
            self.reading = False
            self.ends("cancelled")
            return True
        return self._go(what, now_s)

    def _end(self, what: Step) -> bool:
        word = {Step.FAIL: "failed", Step.EXPIRE: "expired", Step.CANCEL: "cancelled"}[what]
        if self.state != "transferring":
            self.ends(word)
            return True
        if self.cancelling:
            if what is Step.CANCEL:
                return False
            self.reading = False  # the abort is owed already
            self.ends("cancelled")
            return True
        if what is Step.CANCEL:
            self.cancelling = True
            self.owed.append((f"d{self.decodes}", "abort"))
            return True
        if what is Step.FAIL and not self.copy:
            self.hung_up()
        self.ends(word)
        return True

    def hung_up(self) -> None:
        """Who carries the request has closed its exchange with the decode engine."""
        self.staged, self.reading = self.staged or self.reading, False

    def _go(self, what: Step, now_s: float) -> bool:
        match what, self.state:
            case Step.RESERVE, "planned":
                self.state = "reserved"
            case Step.PREFILL, "reserved":
                self.state, self.prefill_busy = "prefilling", True
            case Step.STAGE, "prefilling" if not self.overlapped:
                self.state, self.prefill_busy, self.staged = "staged", False, True
                self.staged_s = now_s
            case Step.TRANSFER, "staged":
                if not self.fresh_enough(now_s):
                    return False
                self.state, self.reading = "transferring", True
            case Step.TRANSFER, "prefilling" if self.overlapped:
                self.state, self.reading, self.staged = "transferring", True, True
                self.staged_s = now_s + 1e9
            case Step.LAND, "transferring":
                self.state, self.reading = "landed", False
            case Step.RELEASE, "landed":
                self.state, self.staged = "released", False
            case Step.OTHER_PREFILL, "reserved" | "prefilling" | "staged" | "transferring":
                self.hung_up()
                self.ends("reserved")
                self.prefills += 1
            case Step.OTHER_DECODE, "reserved" | "prefilling" | "staged":
                if not self.fresh_enough(now_s):
                    return False
                self.decodes += 1
            case Step.OTHER_DECODE, "transferring" if not self.overlapped:
                if not self.fresh_enough(now_s):
                    return False
                self.owed.append((f"d{self.decodes}", "abort"))
                self.state, self.reading = "staged", False
                self.decodes += 1
            case _:
                return False
        return True


WORDS = {Verb.ABORT_DECODE: "abort", Verb.ABORT_PREFILL: "abort", Verb.RELEASE: "release"}


@given(
    st.sampled_from(HandoffOrder),
    st.sampled_from([Purpose.HANDOFF, Purpose.REPLICATE]),
    st.lists(st.tuples(st.sampled_from(Step), st.floats(0.0, 20.0)), max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_a_ticket_does_what_the_board_says(
    order: HandoffOrder, purpose: Purpose, steps: list[tuple[Step, float]]
) -> None:
    ticket, now_s = fresh(order, purpose), 1_000.0
    naive = Naive(order is HandoffOrder.OVERLAPPED, purpose is not Purpose.HANDOFF)
    for what, waited_s in steps:
        now_s += waited_s
        before = ticket
        other = None
        if what is Step.OTHER_PREFILL:
            other = end(f"p{naive.prefills + 1}")
        elif what is Step.OTHER_DECODE:
            other = end(f"d{naive.decodes + 1}")
        possible = naive.do(what, now_s)
        try:
            ticket = step(ticket, what, now_s, PATIENCE, News(other))
        except Refused:
            assert not possible
            assert ticket == before
            continue
        assert possible
        assert ticket.state.value == naive.state
        assert ticket.cancelling == naive.cancelling
        assert ticket.sequence == before.sequence + 1
        assert ticket.fence == 1 + naive.prefills + naive.decodes
        assert (ticket.prefill, ticket.decode) == (
            end(f"p{naive.prefills}"),
            end(f"d{naive.decodes}"),
        )
        owed = [(duty.end.worker, WORDS[duty.verb]) for duty in ticket.owed]
        assert sorted(owed) == sorted(naive.owed)
        assert (ticket.state in TERMINAL) or ticket.deadline_s > 0


@given(st.lists(st.sampled_from(Step), max_size=12))
def test_an_old_fence_changes_nothing(steps: list[Step]) -> None:
    ticket = fresh()
    for what in steps:
        other = end("x") if what in (Step.OTHER_PREFILL, Step.OTHER_DECODE) else None
        with pytest.raises(Fenced):
            check_fence(ticket, ticket.fence - 1)
        check_fence(ticket, ticket.fence)
        try:
            ticket = step(ticket, what, 1.0, PATIENCE, News(other))
        except Refused:
            continue


@given(st.lists(st.sampled_from(Step), max_size=12))
def test_what_has_ended_is_over_once_it_owes_nothing(steps: list[Step]) -> None:
    ticket = fresh()
    for what in [*steps, Step.FAIL, Step.EXPIRE]:
        other = end("x") if what in (Step.OTHER_PREFILL, Step.OTHER_DECODE) else None
        try:
            ticket = step(ticket, what, 1.0, PATIENCE, News(other))
        except Refused:
            continue
    assert ticket.state in TERMINAL
    while ticket.owed:
        assert not over(ticket)
        ticket = settle(ticket, ticket.owed[0])
    assert over(ticket)
    assert not ticket.quarantined


def test_every_live_state_can_be_left_by_failure_and_by_time() -> None:
    live = [state for state in State if state not in TERMINAL]
    path = (Step.RESERVE, Step.PREFILL, Step.STAGE, Step.TRANSFER, Step.LAND)
    seen = []
    ticket = fresh()
    for what in (*path, None):
        seen.append(ticket.state)
        for ending in (Step.FAIL, Step.EXPIRE):
            assert step(ticket, ending, 2.0, PATIENCE).state in TERMINAL
        if what is not None:
            ticket = step(ticket, what, 1.0, PATIENCE)
    assert seen == live
