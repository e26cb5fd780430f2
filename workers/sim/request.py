"""What the scheduler is asked for, what it tells, and what it keeps about a request meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from workers.sim.cache import RequestId


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt of known length and an answer of known length.

    `prompt_hashes` names every full block of the prompt, in order (chained hashes as plain
    Python ints; an empty sequence makes the prompt unshareable). `output_hash(i)` names block `i`
    of the whole sequence once it is full of computed tokens; without it, blocks filled while
    decoding take space but are never found again.
    """

    id: RequestId
    prompt_tokens: int
    prompt_hashes: Sequence[int]
    output_tokens: int
    output_hash: Callable[[int], int] | None = None
    kind: str = ""
    """Of text, and how it is sampled: what the acceptance of drafts depends on."""
    stage: bool = False
    """Keep its blocks once it has ended, until they are released: another engine fetches them."""
    fetch: bool = False
    """Another engine has computed the prompt; its blocks come from there."""


class Sequenced(Protocol):
    """What must be known of the sequence whose blocks are announced."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def cache_salt(self) -> str | None: ...


class Fetch(NamedTuple):
    """A request whose place is taken: its blocks from `first_block` on are to be fetched."""

    id: RequestId
    first_block: int
    blocks: int


class ProgressKind(Enum):
    """What became visible of a request."""

    FIRST_TOKEN = "first_token"
    TOKENS = "tokens"
    FINISHED = "finished"


class Progress(NamedTuple):
    """One request at the end of a step. An answer of one token yields FIRST_TOKEN and FINISHED.

    `output_tokens` counts from the answer's beginning. `cached_tokens` is how much of the prompt
    was found in the cache when the request was first admitted.
    """

    id: RequestId
    kind: ProgressKind
    time_s: float
    output_tokens: int
    cached_tokens: int
    drafted_tokens: int = 0
    """Proposed for it so far, by speculative decoding."""
    accepted_tokens: int = 0
    """Of these, kept."""


class Stage(Enum):
    """Where a request stands in the scheduler."""

    WAITING = 0
    PREFILL = 1
    DECODE = 2
    FETCH = 3
    """It has its blocks, and what belongs into them is on its way."""


@dataclass(slots=True, eq=False)
class Job:
    """A request in the scheduler. `computed_tokens` have their KV in blocks; prefill runs to
    `target_tokens`, which after a preemption includes the tokens already answered.

    Of its `blocks`, the first `named_blocks` are in the cache under `names`.
    """

    request: Request
    names: list[int]
    target_tokens: int
    stage: Stage = Stage.WAITING
    admission: int = 0
    computed_tokens: int = 0
    chunk_tokens: int = 0
    output_tokens: int = 0
    blocks: int = 0
    named_blocks: int = 0
    cached_tokens: int | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    fetch: bool = False
    """Its prompt is not to be computed here."""
    first_due: bool = False
    """It decodes, and its first token has not been told: its prompt was computed elsewhere."""

    @property
    def left_tokens(self) -> int:
        """What it has still to prefill, as far as is known."""
        return 0 if self.fetch else self.target_tokens - self.computed_tokens
