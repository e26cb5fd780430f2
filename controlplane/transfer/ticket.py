"""The life of a ticket: which step leads where, and what is then owed to whom. Pure.

`TABLE` is all there is: a step that a state does not list is refused. What a ticket owes are words
to agents, so that no engine keeps blocks or work for a movement that is over; a ticket is settled
when it has ended and owes nothing more.

A cancellation while bytes are under way is put off until the transfer has ended one way or the
other, for pages that may still be written to must not be used again. Its patience is bounded: then
the ticket is given up, and marked as quarantined until the engine's lease is over.

Who carries a request and says that its transfer failed has closed its exchange with the decode
engine, and may ask the same engine again under the same id. So nothing is aborted there then: it
would be what has just begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from proto.transfers import TERMINAL, Duty, End, Purpose, State, Step, Ticket, Verb
from proto.workers import HandoffOrder


class Refused(Exception):
    """The step cannot be made; `reason` is a word of `proto.transfers.Denied`."""

    reason = "illegal"


class IllegalStep(Refused):
    """The state does not allow it."""


class Fenced(Refused):
    """Who asks was told of an end that has been replaced since."""

    reason = "fenced"


class LeaseOver(Refused):
    """The blocks may be gone by the time that they would be read."""

    reason = "lease_over"


class Rule(NamedTuple):
    """Where a step leads, and what is owed from then on."""

    to: State
    owes: tuple[Verb, ...] = ()
    refence: bool = False
    cancelling: bool = False
    quarantine: bool = False


class Patience(msgspec.Struct, frozen=True):
    """How long a ticket may stay in a state, in seconds."""

    planned_s: float = 5.0
    reserved_s: float = 5.0
    prefill_s: float = 120.0
    offer_s: float = 5.0
    """What takes the place of a prefill where blocks are there already."""
    transfer_s: float = 60.0
    landed_s: float = 30.0
    cancel_s: float = 5.0
    """What is left to a transfer whose request was cancelled."""
    lease_margin_s: float = 3.0
    """A transfer must begin so long before the lease of its blocks is over."""
    abort_s: float = 10.0
    """An abort that no agent has confirmed for so long is given up: the engine is gone, or
    notices by itself that nobody listens."""


_AT_PREFILL = (Verb.ABORT_PREFILL,)
_STAGED = (Verb.RELEASE,)
_BOTH = (Verb.ABORT_DECODE, Verb.RELEASE)


def _ends(owes: tuple[Verb, ...] = ()) -> dict[Step, Rule]:
    return {
        Step.FAIL: Rule(State.FAILED, owes),
        Step.EXPIRE: Rule(State.EXPIRED, owes),
        Step.CANCEL: Rule(State.CANCELLED, owes),
    }


Row = tuple[State, bool]
"""A state, and whether its ticket is to be cancelled."""

TABLE: Mapping[Row, Mapping[Step, Rule]] = {
    (State.PLANNED, False): {
        Step.RESERVE: Rule(State.RESERVED),
        **_ends(),
    },
    (State.RESERVED, False): {
        Step.PREFILL: Rule(State.PREFILLING),
        Step.OTHER_PREFILL: Rule(State.RESERVED, refence=True),
        Step.OTHER_DECODE: Rule(State.RESERVED, refence=True),
        **_ends(),
    },
    (State.PREFILLING, False): {
        Step.STAGE: Rule(State.STAGED),
        Step.TRANSFER: Rule(State.TRANSFERRING),  # where both legs run at once
        Step.OTHER_PREFILL: Rule(State.RESERVED, _AT_PREFILL, refence=True),
        Step.OTHER_DECODE: Rule(State.PREFILLING, refence=True),
        **_ends(_AT_PREFILL),
    },
    (State.STAGED, False): {
        Step.TRANSFER: Rule(State.TRANSFERRING),
        Step.OTHER_PREFILL: Rule(State.RESERVED, _STAGED, refence=True),
        Step.OTHER_DECODE: Rule(State.STAGED, refence=True),
        **_ends(_STAGED),
    },
    (State.TRANSFERRING, False): {
        Step.LAND: Rule(State.LANDED),
        Step.OTHER_PREFILL: Rule(State.RESERVED, _STAGED, refence=True),
        Step.OTHER_DECODE: Rule(State.STAGED, (Verb.ABORT_DECODE,), refence=True),
        Step.FAIL: Rule(State.FAILED, _BOTH),
        Step.EXPIRE: Rule(State.EXPIRED, _BOTH, quarantine=True),
        Step.CANCEL: Rule(State.TRANSFERRING, (Verb.ABORT_DECODE,), cancelling=True),
    },
    (State.TRANSFERRING, True): {
        Step.LAND: Rule(State.CANCELLED, _STAGED),
        Step.FAIL: Rule(State.CANCELLED, _STAGED),
        Step.EXPIRE: Rule(State.CANCELLED, _STAGED, quarantine=True),
    },
    (State.LANDED, False): {
        Step.RELEASE: Rule(State.RELEASED),
        **_ends(_STAGED),
    },
}


def legal(ticket: Ticket, step: Step) -> bool:
    """Whether the ticket can make the step at all."""
    rule = TABLE.get((ticket.state, ticket.cancelling), {}).get(step)
    if rule is None:
        return False
    overlapped = ticket.order is HandoffOrder.OVERLAPPED
    if ticket.state is State.PREFILLING:
        if step is Step.TRANSFER:
            return overlapped
        if step is Step.STAGE:
            return not overlapped
    # What an overlapped transfer has moved so far is of use to nobody else.
    return not (step is Step.OTHER_DECODE and overlapped and ticket.state is State.TRANSFERRING)


class News(NamedTuple):
    """What a step brings with it."""

    other: End | None = None
    """Who comes in place of an end."""
    handle: bytes = b""
    """Where staged blocks lie."""
    cause: str = ""
    age_s: float = 0.0
    """How long ago they may have been staged."""


NOTHING = News()


def check_fence(ticket: Ticket, fence: int) -> None:
    """Raises `Fenced` if it is not the ticket's."""
    if fence != ticket.fence:
        raise Fenced(f"ticket {ticket.id} is at fence {ticket.fence}, not {fence}")


def check_legal(ticket: Ticket, what: Step) -> None:
    """Raises `IllegalStep` if the ticket cannot make the step at all."""
    if not legal(ticket, what):
        raise IllegalStep(f"ticket {ticket.id} is {ticket.state}: it cannot {what}")


def step(
    ticket: Ticket, what: Step, now_s: float, patience: Patience, news: News = NOTHING
) -> Ticket:
    """The ticket after a step. Raises `IllegalStep`, `LeaseOver`."""
    check_legal(ticket, what)
    if what in (Step.TRANSFER, Step.OTHER_DECODE) and not _lease_holds(ticket, now_s, patience):
        raise LeaseOver(f"the lease of ticket {ticket.id} is over, or will be at once")
    assert (news.other is not None) == (what in (Step.OTHER_PREFILL, Step.OTHER_DECODE))
    rule = TABLE[ticket.state, ticket.cancelling][what]
    after = msgspec.structs.replace(
        ticket,
        state=rule.to,
        fence=ticket.fence + rule.refence,
        sequence=ticket.sequence + 1,
        cancelling=rule.cancelling,
        quarantined=rule.quarantine,
        changed_s=now_s,
        cause=news.cause or ticket.cause,
        owed=ticket.owed + _duties(ticket, _owes(ticket, what, rule), now_s, patience),
    )
    if what is Step.STAGE:
        lease_until_s = now_s + ticket.lease_s - news.age_s
        after = msgspec.structs.replace(after, handle=news.handle, lease_until_s=lease_until_s)
    elif what is Step.OTHER_PREFILL and news.other:
        after = msgspec.structs.replace(after, prefill=news.other, handle=b"", lease_until_s=0.0)
    elif what is Step.OTHER_DECODE and news.other:
        after = msgspec.structs.replace(after, decode=news.other)
    return msgspec.structs.replace(after, deadline_s=_deadline_s(after, now_s, patience))


def prolonged(ticket: Ticket, now_s: float, patience: Patience) -> Ticket:
    """The ticket when its owner says that it goes on as before."""
    return msgspec.structs.replace(ticket, deadline_s=_deadline_s(ticket, now_s, patience))


def settle(ticket: Ticket, duty: Duty) -> Ticket:
    """The ticket when a duty is done, or has become void."""
    left = tuple(each for each in ticket.owed if each != duty)
    return msgspec.structs.replace(ticket, owed=left, quarantined=ticket.quarantined and bool(left))


def over(ticket: Ticket) -> bool:
    """It has ended, and nobody is owed anything."""
    return ticket.state in TERMINAL and not ticket.owed


def _lease_holds(ticket: Ticket, now_s: float, patience: Patience) -> bool:
    """Whether what is staged will still be there when it is read; nothing staged, nothing lost."""
    return not ticket.lease_until_s or now_s < ticket.lease_until_s - patience.lease_margin_s


def _owes(ticket: Ticket, what: Step, rule: Rule) -> tuple[Verb, ...]:
    """A copy has an id of its own, and may still be under way when it is given up."""
    if what is Step.FAIL and ticket.purpose is Purpose.HANDOFF:
        return tuple(verb for verb in rule.owes if verb is not Verb.ABORT_DECODE)
    return rule.owes


def _duties(
    ticket: Ticket, verbs: tuple[Verb, ...], now_s: float, patience: Patience
) -> tuple[Duty, ...]:
    lease_until_s = ticket.lease_until_s or now_s + ticket.lease_s
    abort_until_s = now_s + patience.abort_s
    return tuple(
        Duty(verb, ticket.prefill, lease_until_s, ticket.handle)
        if verb is Verb.RELEASE
        else Duty(
            verb, ticket.decode if verb is Verb.ABORT_DECODE else ticket.prefill, abort_until_s
        )
        for verb in verbs
    )


def _deadline_s(ticket: Ticket, now_s: float, patience: Patience) -> float:
    if ticket.cancelling:
        return min(ticket.deadline_s, now_s + patience.cancel_s)
    match ticket.state:
        case State.PLANNED:
            return now_s + patience.planned_s
        case State.RESERVED:
            return now_s + patience.reserved_s
        case State.PREFILLING:
            computed = ticket.purpose is Purpose.HANDOFF
            return now_s + (patience.prefill_s if computed else patience.offer_s)
        case State.STAGED:
            return ticket.lease_until_s - patience.lease_margin_s
        case State.TRANSFERRING:
            return now_s + patience.transfer_s
        case State.LANDED:
            return now_s + patience.landed_s
        case _:
            return now_s
