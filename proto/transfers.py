"""Moving KV blocks from one engine to another: the ticket, and what is said about it.

A gateway that carries a request asks the coordinator to `Begin`; it is granted a ticket, or told to
let the decode worker prefill by itself. It says each `Report` of how far it has come. Whoever
shows a fence that is not the ticket's acts on what is no longer true, and is refused. Agents get
`Command`s. Prompts, tokens and KV bytes are in none of these; a handle is an engine's own words on
where blocks lie.

Times are seconds since the epoch: they are compared by whichever replica reads the ticket.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import NewType

import msgspec

from proto.ids import RequestId, ServiceId, WorkerId
from proto.numbers import Count, Span
from proto.route import Elsewhere
from proto.workers import HandoffOrder

TicketId = NewType("TicketId", str)
"""One movement of KV blocks; a subject token."""

HANDLE_BYTES_MAX = 1 << 20


def new_ticket_id(rng: random.Random) -> TicketId:
    """96 random bits in hex."""
    return TicketId(f"{rng.getrandbits(96):024x}")


class State(StrEnum):
    """How far a movement has come."""

    PLANNED = "planned"
    RESERVED = "reserved"
    """The decode worker keeps a place for it."""
    PREFILLING = "prefilling"
    STAGED = "staged"
    """The prefill worker holds the blocks under a lease."""
    TRANSFERRING = "transferring"
    LANDED = "landed"
    RELEASED = "released"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.RELEASED, State.FAILED, State.EXPIRED, State.CANCELLED})


class Step(StrEnum):
    """What may happen to a ticket."""

    RESERVE = "reserve"
    PREFILL = "prefill"
    STAGE = "stage"
    TRANSFER = "transfer"
    LAND = "land"
    RELEASE = "release"
    OTHER_PREFILL = "other_prefill"
    """The prefill worker is lost: another one begins anew."""
    OTHER_DECODE = "other_decode"
    """The decode worker is lost: another one takes over what there is."""
    FAIL = "fail"
    EXPIRE = "expire"
    CANCEL = "cancel"


class Verb(StrEnum):
    """What an agent is told to have its engine do."""

    ABORT_PREFILL = "abort_prefill"
    ABORT_DECODE = "abort_decode"
    RELEASE = "release"
    """Let staged blocks go."""
    REPLICATE = "replicate"
    """Fetch blocks from another engine, to have them, too."""
    OFFER = "offer"
    """Keep a cached prefix for another engine to fetch."""


class Purpose(StrEnum):
    """Why blocks are moved."""

    HANDOFF = "handoff"
    """A request is prefilled on one worker and decoded on another."""
    FETCH = "fetch"
    """A request goes to a worker that lacks what another one has of its prompt."""
    REPLICATE = "replicate"
    """A prefix is asked for more often than one worker should answer."""
    EVACUATE = "evacuate"
    """Its worker is leaving."""


class End(msgspec.Struct, frozen=True):
    """One of both engines of a movement."""

    worker: WorkerId
    incarnation: int
    url: str
    engine: str


class Duty(msgspec.Struct, frozen=True):
    """Something that an agent has still to see done, lest an engine keep what nobody wants."""

    verb: Verb
    end: End
    until_s: float
    """Then the engine has let go by itself, as its lease is over."""
    handle: bytes = b""


class Ticket(msgspec.Struct, frozen=True):
    """One movement. Never changed but by `controlplane.transfer.ticket`."""

    id: TicketId
    request: RequestId
    model: str
    owner: ServiceId
    """The gateway that carries the request; the coordinator itself, where none does."""
    order: HandoffOrder
    prefill: End
    """Who has the blocks, or is to compute them."""
    decode: End
    """Who is to get them."""
    purpose: Purpose = Purpose.HANDOFF
    tail: int = 0
    """Of a movement for its own sake: the canonical name of its last block."""
    state: State = State.PLANNED
    fence: int = 1
    """Grows when an end is replaced: what was said to the old one no longer counts."""
    sequence: int = 0
    """Transitions so far."""
    cancelling: bool = False
    """It is cancelled as soon as the transfer has ended, one way or the other."""
    quarantined: bool = False
    """It was given up while bytes may still have been on their way."""
    created_s: float = 0.0
    changed_s: float = 0.0
    deadline_s: float = 0.0
    """Of its present state."""
    lease_s: float = 30.0
    """For how long the prefill engine holds staged blocks."""
    lease_until_s: float = 0.0
    prompt_tokens: int = 0
    blocks: int = 0
    kv_bytes: int = 0
    topology: tuple[str, ...] = ()
    """Labels in which both ends must agree."""
    link: str = ""
    """Which path the bytes take; movements of one link share its bandwidth."""
    handle: bytes = b""
    """Where the blocks lie, in the words of the prefill engine; opaque to us."""
    cause: str = ""
    """Why it failed or was cancelled."""
    owed: tuple[Duty, ...] = ()
    trace: dict[str, str] = {}
    """W3C trace context of the request."""


class Part(msgspec.Struct, frozen=True):
    """A worker as the router chose it for its part."""

    worker: WorkerId
    incarnation: int
    new_prefill_tokens: int
    """Of the prompt, what it would have to compute."""


class Begin(msgspec.Struct, frozen=True):
    """May this request be prefilled elsewhere, and by whom?"""

    request: RequestId
    model: str
    owner: ServiceId
    prompt_tokens: int
    decode: Part
    prefill: Part | None = None
    """None: the router found nobody."""
    exclude: tuple[WorkerId, ...] = ()
    """Workers that have just failed this request."""
    topology: str = ""
    """A label, such as `nvlink_domain`, in which both workers must agree; "" for the operator's
    own choice."""
    id: TicketId = TicketId("")
    """What a ticket is to be called, so that an asker who hears of none can take it back; "": as
    the coordinator likes."""


class Granted(msgspec.Struct, frozen=True, tag="granted"):
    """Prefill there, under this ticket."""

    ticket: Ticket


class Local(msgspec.Struct, frozen=True, tag="local"):
    """Let the decode worker do all of it. `reason` is one of a few words."""

    reason: str
    detail: str = ""
    fallback: bool = False
    """Remote prefill was wanted, and could not be had."""


class Report(msgspec.Struct, frozen=True):
    """The owner says how far it has come, or that it has come to nothing."""

    ticket: TicketId
    fence: int
    step: Step
    handle: bytes = b""
    """With `STAGE`."""
    kv_bytes: int = 0
    seconds: float = 0.0
    """With `LAND`: how long it took."""
    cause: str = ""
    """With `FAIL` and `CANCEL`."""
    exclude: tuple[WorkerId, ...] = ()
    """With `OTHER_PREFILL` and `OTHER_DECODE`: who will not do."""
    age_s: Span = 0.0
    """With `STAGE` and `TRANSFER`: how long ago the blocks may have been staged."""


class Move(msgspec.Struct, frozen=True):
    """Have a worker get a prefix that another one caches, if that beats computing it."""

    request: RequestId
    """The request that it is for, or a name of the asker's own."""
    model: str
    purpose: Purpose
    source: WorkerId
    tail: int
    """The canonical name of the prefix' last block, which says all before it, too."""
    blocks: Count
    target: WorkerId = WorkerId("")
    """"": whoever has most room."""
    new_blocks: Count = 0
    """What the target lacks of it, as far as is known; 0: all of it."""
    exclude: tuple[WorkerId, ...] = ()
    """Who has it already."""
    within_s: Span = 0.0
    """The asker waits no longer; 0: for as long as it takes."""


def fetch(
    request: RequestId, model: str, target: WorkerId, there: Elsewhere, within_s: float = 0.0
) -> Move:
    """What a router has seen elsewhere, for the worker that it chose."""
    what = there.worker, there.tail, there.blocks
    return Move(request, model, Purpose.FETCH, *what, target, there.new_blocks, within_s=within_s)


class Moved(msgspec.Struct, frozen=True, tag="moved"):
    """The target has it now."""

    ticket: TicketId
    target: WorkerId
    kv_bytes: int
    """What had to be fetched of it."""
    seconds: float


class Stays(msgspec.Struct, frozen=True, tag="stays"):
    """It was not moved. `reason` is one of a few words."""

    reason: str
    detail: str = ""


MoveReply = Moved | Stays


class Chain(msgspec.Struct, frozen=True):
    """A prefix that a worker caches, by its last block."""

    tail: int
    blocks: Count
    new_blocks: Count = 0
    """Of these, those that no chain before it had."""
    root: int = 0
    """Its first block: chains that share it belong together."""


class Evacuate(msgspec.Struct, frozen=True):
    """A worker that takes no more requests says what it has that others could use, what was used
    last first."""

    worker: WorkerId
    incarnation: int
    model: str
    chains: tuple[Chain, ...]


class Evacuated(msgspec.Struct, frozen=True):
    """What came of it."""

    chains: int
    kv_bytes: int


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """Done, and this is the ticket now."""

    ticket: Ticket


class Denied(msgspec.Struct, frozen=True, tag="denied"):
    """Not done. `reason`: `unknown`, `fenced`, `illegal`, `lease_over` or `no_worker`."""

    reason: str
    detail: str
    state: State | None = None


BeginReply = Granted | Local
ReportReply = Stepped | Denied


class ListTickets(msgspec.Struct, frozen=True):
    """Which movements are there?"""


class Tickets(msgspec.Struct, frozen=True):
    """All that are not settled, as one replica sees them."""

    tickets: tuple[Ticket, ...]


class Transition(msgspec.Struct, frozen=True):
    """Said to everyone when a ticket has changed."""

    ticket: TicketId
    request: RequestId
    sequence: int
    step: Step
    before: State
    after: State
    prefill: WorkerId
    prefill_incarnation: int
    decode: WorkerId
    decode_incarnation: int
    at_s: float
    kv_bytes: int = 0
    link: str = ""
    cause: str = ""
    took_s: float = 0.0
    """How long it was in the state before."""


class Command(msgspec.Struct, frozen=True):
    """To the agent of one end. Doing it twice is as good as once."""

    ticket: TicketId
    fence: int
    verb: Verb
    request: RequestId
    incarnation: int
    """Of the agent that is meant."""
    handle: bytes = b""
    tail: int = 0
    """With `OFFER`: the canonical name of the last block of what is wanted."""


class Outcome(StrEnum):
    """What came of a command."""

    DONE = "done"
    GONE = "gone"
    """The engine knows nothing of it, or it was another life of it that did."""
    BY_LEASE = "by_lease"
    """This engine cannot be told; it lets go when its lease is over."""
    FAILED = "failed"


class CommandReply(msgspec.Struct, frozen=True):
    """An agent's answer."""

    outcome: Outcome
    detail: str = ""
    kv_bytes: int = 0
    blocks: int = 0
    """That are kept, or had to be fetched."""
    handle: bytes = b""
    """After `OFFER`: where they lie."""
