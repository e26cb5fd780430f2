"""Made-up conversations in the trace format, for where no measured trace may be shipped.

What is modelled, and nothing else:

- Conversations begin as a Poisson process of `rate` a second.
- Each opens with one of `system_prompts` system prompts, chosen by a Zipf law, so a few are very
  common. A system prompt is a whole number of 512-token blocks (the format can share no less),
  uniform from `system_blocks_min` to `system_blocks_max`. None at all opens nothing in common.
- With `siblings` above 1 each arrival is a burst: so many conversations within milliseconds
  (exponential gaps, `sibling_gap_s` on average) that share a system prompt nobody had before.
- The number of turns is geometric with mean `turns`. Every turn resends all that was said before,
  answers included, and adds a user's message.
- Messages and answers are log-normal in tokens, with the given means and one `sigma`. A share
  `long_share` of the messages is `long_factor` times as long.
- The next turn comes after the answer was written (`ms_per_output_token` for each token) and an
  exponential time to think, `think_s` on average.
- With `documents_rate` above 0 long documents are sent meanwhile, each by somebody who says nothing
  more: a Poisson process as long as the conversations begin, of prompts of `document_tokens` (give
  or take a fifth, uniform) that have nothing in common, answered in `document_output_tokens`.
- A conversation ends early when the next turn would not fit `context_tokens`.

Arrivals do not wait for the replay: like a recorded trace, this one has already happened. Equal
settings, the seed among them, give equal bytes.
"""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, count
from pathlib import Path

import msgspec

from controlplane.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest


@dataclass(frozen=True)
class Workload:
    """The knobs; the module says what they turn."""

    conversations: int = 1_000
    rate: float = 1.0
    turns: float = 4.0
    think_s: float = 30.0
    ms_per_output_token: float = 25.0
    system_prompts: int = 20
    system_blocks_min: int = 1
    system_blocks_max: int = 8
    zipf: float = 1.1
    siblings: int = 1
    sibling_gap_s: float = 0.002
    message_tokens: float = 400.0
    long_share: float = 0.0
    long_factor: float = 32.0
    output_tokens: float = 250.0
    sigma: float = 0.8
    documents_rate: float = 0.0
    document_tokens: int = 30_000
    document_output_tokens: int = 200
    context_tokens: int = 32_768

    def __post_init__(self) -> None:
        """Refuses, as a ValueError, what would make no trace."""
        positive = ("conversations", "rate", "siblings", "system_blocks_min", "message_tokens")
        for name in (*positive, "long_factor", "output_tokens", "context_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        notnegative = ("system_prompts", "think_s", "ms_per_output_token", "zipf", "sigma")
        for name in (*notnegative, "sibling_gap_s", "long_share", "documents_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be below 0")
        if self.long_share > 1:
            raise ValueError("long_share must not be above 1")
        if not self.turns >= 1:
            raise ValueError("turns must be at least 1: it is a mean, and nobody says nothing")
        if self.system_blocks_max < self.system_blocks_min:
            raise ValueError("system_blocks_max must not be below system_blocks_min")


@dataclass(frozen=True)
class _Turn:
    arrival_s: float
    input_tokens: int
    output_tokens: int


@dataclass
class _Prefix:
    """What several conversations begin with; its ids are given when it is first sent."""

    blocks: int
    ids: list[int] = field(default_factory=list)


@dataclass
class _Conversation:
    prefix: _Prefix
    turns: list[_Turn]
    own_ids: list[int] = field(default_factory=list)


def generate(workload: Workload, rng: random.Random) -> Iterator[TraceRequest]:
    """The requests in order of arrival; ids are numbered in the order they are first seen."""
    fresh = count()
    conversations = list(_conversations(workload, rng))
    conversations += _documents(workload, conversations, rng)
    order = sorted(
        (turn.arrival_s, c, t)
        for c, conversation in enumerate(conversations)
        for t, turn in enumerate(conversation.turns)
    )
    for _, c, t in order:
        conversation = conversations[c]
        turn, shared, own = conversation.turns[t], conversation.prefix.ids, conversation.own_ids
        if not shared:
            shared.extend(next(fresh) for _ in range(conversation.prefix.blocks))
        blocks = math.ceil(turn.input_tokens / TRACE_BLOCK_TOKENS)
        own.extend(next(fresh) for _ in range(blocks - len(shared) - len(own)))
        yield TraceRequest(turn.arrival_s, turn.input_tokens, turn.output_tokens, (*shared, *own))


def write(requests: Iterable[TraceRequest], path: Path) -> int:
    """Write a `.jsonl` or `.jsonl.gz`; returns how many requests it holds. Raises OSError."""
    encoder = msgspec.json.Encoder()
    lines = 0
    with path.open("wb") as raw:
        # No name and no time inside the archive: equal traces are equal files.
        file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with file:
            for request in requests:
                file.write(encoder.encode(_as_line(request)) + b"\n")
                lines += 1
    return lines


def _as_line(request: TraceRequest) -> dict[str, int | tuple[int, ...]]:
    return {
        "timestamp": round(request.arrival_s * 1000),
        "input_length": request.input_tokens,
        "output_length": request.output_tokens,
        "hash_ids": request.hash_ids,
    }


def _conversations(workload: Workload, rng: random.Random) -> Iterator[_Conversation]:
    common = [_new_prefix(workload, rng) for _ in range(workload.system_prompts)]
    popularity = list(accumulate(rank**-workload.zipf for rank in range(1, len(common) + 1)))
    start_s, made = 0.0, 0
    while made < workload.conversations:
        start_s += rng.expovariate(workload.rate)
        if workload.siblings > 1:
            prefix = _new_prefix(workload, rng)
        elif common:
            [prefix] = rng.choices(common, cum_weights=popularity)
        else:
            prefix = _Prefix(0)
        sibling_s = start_s
        for _ in range(min(workload.siblings, workload.conversations - made)):
            yield _Conversation(prefix, list(_turns(workload, sibling_s, prefix, rng)))
            made += 1
            if workload.siblings > 1 and workload.sibling_gap_s:
                sibling_s += rng.expovariate(1 / workload.sibling_gap_s)


def _documents(
    workload: Workload, conversations: list[_Conversation], rng: random.Random
) -> Iterator[_Conversation]:
    if not workload.documents_rate:
        return
    spread_tokens = workload.document_tokens // 5
    last_s = max(each.turns[0].arrival_s for each in conversations if each.turns)
    arrival_s = rng.expovariate(workload.documents_rate)
    while arrival_s < last_s:
        tokens = workload.document_tokens + rng.randint(-spread_tokens, spread_tokens)
        most_tokens = workload.context_tokens - workload.document_output_tokens
        turn = _Turn(arrival_s, min(tokens, most_tokens), workload.document_output_tokens)
        yield _Conversation(_Prefix(0), [turn])
        arrival_s += rng.expovariate(workload.documents_rate)


def _new_prefix(workload: Workload, rng: random.Random) -> _Prefix:
    return _Prefix(rng.randint(workload.system_blocks_min, workload.system_blocks_max))


def _turns(
    workload: Workload, start_s: float, prefix: _Prefix, rng: random.Random
) -> Iterator[_Turn]:
    arrival_s, said_tokens = start_s, prefix.blocks * TRACE_BLOCK_TOKENS
    while True:
        input_tokens = said_tokens + _message_tokens(workload, rng)
        output_tokens = _length(workload.output_tokens, workload.sigma, rng)
        said_tokens = input_tokens + output_tokens
        if said_tokens > workload.context_tokens:
            return
        yield _Turn(arrival_s, input_tokens, output_tokens)
        # Geometric: after every turn the conversation goes on with the same probability.
        if rng.random() * workload.turns < 1:
            return
        arrival_s += output_tokens * workload.ms_per_output_token / 1000
        arrival_s += rng.expovariate(1 / workload.think_s) if workload.think_s else 0.0


def _message_tokens(workload: Workload, rng: random.Random) -> int:
    mean_tokens = workload.message_tokens
    # No die is cast where there is nothing to decide: an older trace stays the same.
    if workload.long_share and rng.random() < workload.long_share:
        mean_tokens *= workload.long_factor
    return _length(mean_tokens, workload.sigma, rng)


def _length(mean_tokens: float, sigma: float, rng: random.Random) -> int:
    """Log-normal with the given mean; at least one token."""
    return max(1, round(rng.lognormvariate(math.log(mean_tokens) - sigma**2 / 2, sigma)))
