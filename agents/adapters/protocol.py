"""What an agent asks of an engine, whichever it is, and the plain values that come back.

An adapter knows one engine's dialect and nothing of the control plane: no names, no subjects, no
records. All that differs between engines is behind these few questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Protocol, runtime_checkable

import msgspec

from proto.kv import Tier
from proto.transfers import Command, CommandReply
from proto.workers import KvTransfer

EngineHash = int | bytes
"""A block's name in the engine's own words: an unsigned 64-bit number, or a whole digest."""

Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
"""A token id as engines publish it; `proto.hashing` takes no other."""


class EngineAway(Exception):
    """The engine does not answer, or not yet; try again."""


class EngineRefused(EngineAway):
    """The engine answers this question with an error."""


class EngineUnfit(Exception):
    """The engine answers, but what it says cannot be served truthfully; says why and what to do."""


class Tokenizer(msgspec.Struct, frozen=True):
    """How to turn this model's text into tokens, as found beside its weights."""

    path: str
    """The `tokenizer.json` file."""
    json: str | None = None
    """Its content, where small enough to be handed on."""
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}


class EngineFacts(msgspec.Struct, frozen=True):
    """What does not change during one life of an engine."""

    model: str
    version: str
    context_tokens: int
    block_tokens: int
    total_blocks: int
    max_batched_tokens: int
    max_running: int
    tokenizer: Tokenizer | None
    kv_events: bool
    """False: nobody tells us what the engine caches."""
    why_no_events: str = ""
    """And what to do about it."""
    transfer: KvTransfer | None = None
    """How its KV blocks can go to another engine; None: they cannot."""


class EngineDrafts(msgspec.Struct, frozen=True):
    """What came of speculative decoding since the engine started."""

    verifications: int
    """Sequences times steps in which the engine checked drafts."""
    drafted_tokens: int
    accepted_tokens: int


class EngineWork(msgspec.Struct, frozen=True):
    """What an engine has done since it started."""

    steps: int
    prefill_tokens: int
    """Of prompts, computed and not found in cache."""
    generated_tokens: int
    gaps: int
    """Times between two tokens of one stream."""
    gaps_s: float
    """Their sum."""
    drafts: EngineDrafts | None = None
    """None: it does not speculate, or does not tell."""
    first_tokens: int = 0
    """Answers that have begun."""
    first_tokens_s: float = 0.0
    """Sum of the times that they were waited for."""
    prompts_s: float = 0.0
    """Times from a prompt's scheduling to its first token, summed; 0 where it does not tell."""

    def since(self, before: EngineWork) -> EngineWork:
        """What was done between two looks at one life."""
        return EngineWork(
            self.steps - before.steps,
            self.prefill_tokens - before.prefill_tokens,
            self.generated_tokens - before.generated_tokens,
            self.gaps - before.gaps,
            self.gaps_s - before.gaps_s,
            _drafts_since(self.drafts, before.drafts),
            self.first_tokens - before.first_tokens,
            self.first_tokens_s - before.first_tokens_s,
            self.prompts_s - before.prompts_s,
        )


def _drafts_since(now: EngineDrafts | None, before: EngineDrafts | None) -> EngineDrafts | None:
    if now is None or before is None:
        return now
    return EngineDrafts(
        now.verifications - before.verifications,
        now.drafted_tokens - before.drafted_tokens,
        now.accepted_tokens - before.accepted_tokens,
    )


class EngineLoad(msgspec.Struct, frozen=True):
    """What the engine is busy with at one moment. Counters run from the engine's start."""

    running: int
    waiting: int
    queued_prefill_tokens: int
    """Prompt tokens of waiting requests; an estimate where the engine only counts requests."""
    decode_kv_tokens: int
    used_blocks: int
    preemptions: int
    cached_tokens: int
    queried_tokens: int
    started_s: float | None
    """When this life of the engine began, if it tells."""
    work: EngineWork | None = None
    """None where the engine does not count it."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that it has now, by the names that it serves them by."""

    def is_later_life(self, before: EngineLoad) -> bool:
        """Whether the engine has started anew since `before`: it says so, or its counters fell."""
        return self.started_s != before.started_s or self.queried_tokens < before.queried_tokens


class Stored(msgspec.Struct, frozen=True):
    """Blocks entered the engine's cache: a run of one chain, first block first.

    `parent` is the block before the run, None at the start of a prompt. `tokens` are those of all
    blocks in the run; empty where the engine moves blocks that it has announced before.
    `salt` counts at the start of a chain only and holds for all that follows. `media` gives, for
    each block or for none, the keys of images and the like that begin in it.
    """

    hashes: tuple[EngineHash, ...]
    parent: EngineHash | None
    tokens: Sequence[int]
    block_tokens: int
    adapter: str = ""
    salt: str = ""
    media: tuple[tuple[str, ...], ...] = ()
    tier: Tier = Tier.GPU
    reused: bool = False
    """The engine says that it found these blocks and stored nothing."""


class Removed(msgspec.Struct, frozen=True):
    """One physical copy of each of these blocks left the cache."""

    hashes: tuple[EngineHash, ...]
    tier: Tier = Tier.GPU


class Cleared(msgspec.Struct, frozen=True):
    """The cache is empty, in every tier."""


class LossReason(StrEnum):
    """Why it is no longer certain what the engine caches."""

    GAP = "gap"
    """Events were lost and could not be replayed."""
    RESTART = "restart"
    """The engine began a new life; its cache and its numbers start anew."""
    MALFORMED = "malformed"
    """An event could not be read; what it changed is unknown."""


class Lost(msgspec.Struct, frozen=True):
    """From here on, only what later events say is certain."""

    reason: LossReason
    detail: str = ""


EngineEvent = Stored | Removed | Cleared | Lost

Deliver = Callable[[Sequence[EngineEvent]], None]
"""Takes events in the order they happened; called often, must be quick."""


class EngineHandoff(Protocol):
    """What the transfer coordinator may ask of an engine. Every wait has a deadline; doing it
    twice is as good as once. Each raises `EngineAway`."""

    async def abort(self, command: Command) -> CommandReply:
        """Stop computing the request, whichever leg of it runs here."""

    async def release(self, command: Command) -> CommandReply:
        """Let the blocks go that are staged under the command's handle."""

    async def replicate(self, command: Command) -> CommandReply:
        """Fetch the blocks that the handle names from another engine, and cache them."""

    async def offer(self, command: Command, block: EngineHash) -> CommandReply:
        """Keep a cached prefix that ends in `block` for another engine; the reply says where."""

    async def latest(self, most: int) -> Sequence[EngineHash]:
        """The last blocks of what was used last, the latest first; empty if it cannot tell."""


class EngineAdapter(Protocol):
    """One engine, in its own dialect. Every wait inside has a deadline."""

    async def probe(self) -> EngineFacts:
        """Raises `EngineAway`, `EngineUnfit`."""

    async def load(self) -> EngineLoad:
        """Raises `EngineAway`, `EngineUnfit`."""

    async def cancel(self, request: str) -> bool:
        """Have the engine give up what a gateway sent it under this request id.

        True: it was told, and will if it still has it. False: it cannot be told; who holds the
        request's connection must close it. Raises `EngineAway`.
        """

    def recheck(self) -> None:
        """The engine was away for a moment: `follow` should find out whether it has restarted."""

    async def follow(self, deliver: Deliver) -> None:
        """Deliver what happens in the engine's cache until cancelled.

        Begins with all that the engine can still tell of the past, and survives the engine's
        restarts. Raises `EngineUnfit`, and what `deliver` raises.
        """

    @property
    def handoff(self) -> EngineHandoff:
        """How it is told to release and abort."""


@runtime_checkable
class DraftSwitch(Protocol):
    """An engine that can be told to speculate or not, without a restart."""

    async def speculate(self, *, on: bool) -> None:
        """From the next step on. Raises `EngineAway`, `EngineUnfit`."""

    async def say(self) -> Sequence[int]:
        """A short greedy answer, always to the same prompt. Raises `EngineAway`, `EngineUnfit`."""
