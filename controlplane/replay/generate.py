"""Made-up conversations in the trace format, for where no measured trace may be shipped.

What is modelled, and nothing else:

- Conversations begin as a Poisson process of `rate` a second.
- Each opens with one of `system_prompts` system prompts, chosen by a Zipf law, so a few are very
  common. A system prompt is a whole number of 512-token blocks (the format can share no less),
  uniform from `system_blocks_min` to `system_blocks_max`.
- The number of turns is geometric with mean `turns`. Every turn resends all that was said before,
  answers included, and adds a user's message.
- Messages and answers are log-normal in tokens, with the given means and one `sigma`.
- The next turn comes after the answer was written (`ms_per_output_token` for each token) and an
  exponential time to think, `think_s` on average.
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
    message_tokens: float = 400.0
    output_tokens: float = 250.0
    sigma: float = 0.8
    context_tokens: int = 32_768

    def __post_init__(self) -> None:
        """Refuses, as a ValueError, what would make no trace."""
        positive = ("conversations", "rate", "system_prompts", "system_blocks_min")
        for name in (*positive, "message_tokens", "output_tokens", "context_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("think_s", "ms_per_output_token", "zipf", "sigma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be below 0")
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
class _Conversation:
    system_prompt: int
    turns: list[_Turn]
    own_ids: list[int] = field(default_factory=list)


def generate(workload: Workload, rng: random.Random) -> Iterator[TraceRequest]:
    """The requests in order of arrival; ids are numbered in the order they are first seen."""
    fresh = count()
    system_blocks = [
        rng.randint(workload.system_blocks_min, workload.system_blocks_max)
        for _ in range(workload.system_prompts)
    ]
    system_ids: list[list[int]] = [[] for _ in system_blocks]
    conversations = list(_conversations(workload, system_blocks, rng))
    order = sorted(
        (turn.arrival_s, c, t)
        for c, conversation in enumerate(conversations)
        for t, turn in enumerate(conversation.turns)
    )
    for _, c, t in order:
        conversation = conversations[c]
        turn = conversation.turns[t]
        shared = system_ids[conversation.system_prompt]
        if not shared:
            shared.extend(next(fresh) for _ in range(system_blocks[conversation.system_prompt]))
        own = conversation.own_ids
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


def _conversations(
    workload: Workload, system_blocks: list[int], rng: random.Random
) -> Iterator[_Conversation]:
    ranks = range(1, workload.system_prompts + 1)
    popularity = list(accumulate(rank**-workload.zipf for rank in ranks))
    start_s = 0.0
    for _ in range(workload.conversations):
        start_s += rng.expovariate(workload.rate)
        [system] = rng.choices(range(workload.system_prompts), cum_weights=popularity)
        prefix_tokens = system_blocks[system] * TRACE_BLOCK_TOKENS
        yield _Conversation(system, list(_turns(workload, start_s, prefix_tokens, rng)))


def _turns(
    workload: Workload, start_s: float, prefix_tokens: int, rng: random.Random
) -> Iterator[_Turn]:
    arrival_s, said_tokens = start_s, prefix_tokens
    while True:
        input_tokens = said_tokens + _length(workload.message_tokens, workload.sigma, rng)
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


def _length(mean_tokens: float, sigma: float, rng: random.Random) -> int:
    """Log-normal with the given mean; at least one token."""
    return max(1, round(rng.lognormvariate(math.log(mean_tokens) - sigma**2 / 2, sigma)))
