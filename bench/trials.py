"""What is measured of a decider: its pace under many callers, and where its decisions go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import anyio
import psutil

from bench.deciders import Decider, Decision, WrongAnswer
from bench.measure import percentile
from bench.prompts import Prompt
from bench.rig import cpu_s


class Pace(NamedTuple):
    """Of many callers that ask one after the other, each giving back what it got."""

    per_s: float
    p50_ms: float
    p99_ms: float
    on_holder: float
    """Share of decisions for the worker that holds the prompt's first half."""
    cpu_us: float
    """Processor time of the servers, a decision."""


class Place(NamedTuple):
    """Of decisions that stay booked until so many others have been made."""

    on_holder: float
    first_tokens: float
    """Mean of what the chosen worker must compute before the prompt's first token: what is booked
    there, and what it has not cached of the prompt."""


async def pace(
    decider: Decider,
    prompts: Sequence[Prompt],
    passes: int,
    callers: int,
    servers: Sequence[psutil.Process],
) -> Pace:
    """Ask for every prompt `passes` times. Raises `WrongAnswer`."""
    order = iter(list(range(len(prompts))) * passes)
    taken_s: list[float] = []
    holders = 0

    async def call(caller: int) -> None:
        nonlocal holders
        for number in order:
            began_s = time.perf_counter()
            decision = await decider.decide(number, caller)
            taken_s.append(time.perf_counter() - began_s)
            holders += _on_holder(decision, prompts[number])
            await decider.free(decision, caller)

    cpu_before_s, began_s = cpu_s(*servers), time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for caller in range(callers):
            tasks.start_soon(call, caller)
    wall_s, used_s = time.perf_counter() - began_s, cpu_s(*servers) - cpu_before_s
    decisions = len(taken_s)
    return Pace(
        per_s=decisions / wall_s,
        p50_ms=1e3 * percentile(taken_s, 0.5),
        p99_ms=1e3 * percentile(taken_s, 0.99),
        on_holder=holders / decisions,
        cpu_us=1e6 * used_s / decisions,
    )


async def place(decider: Decider, prompts: Sequence[Prompt], workers: int, kept: int) -> Place:
    """One caller that gives back the oldest booking once it has `kept`. Raises `WrongAnswer`."""
    owed_tokens = [0] * workers
    booked: deque[tuple[Decision, int]] = deque()
    waits: list[int] = []
    holders = 0
    for number, prompt in enumerate(prompts):
        decision = await decider.decide(number, 0)
        there = _on_holder(decision, prompt)
        new_tokens = len(prompt.tokens) - prompt.cached_tokens * there
        if len(booked) == kept:
            waits.append(owed_tokens[decision.worker] + new_tokens)
            holders += there
            oldest, its_tokens = booked.popleft()
            owed_tokens[oldest.worker] -= its_tokens
            await decider.free(oldest, 0)
        owed_tokens[decision.worker] += new_tokens
        booked.append((decision, new_tokens))
    for decision, _ in booked:
        await decider.free(decision, 0)
    return Place(holders / len(waits), sum(waits) / len(waits))


class Stay:
    """The decider that never leaves the holder of a prefix, for comparison."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    async def decide(self, prompt: int, caller: int) -> Decision:
        asked = self._prompts[prompt]
        return Decision(asked.holder, asked.cached_tokens, "")

    async def free(self, decision: Decision, caller: int) -> None:
        """Nothing is booked."""


def _on_holder(decision: Decision, prompt: Prompt) -> bool:
    """Whether it is. Who decides for the holder must know what it holds."""
    if decision.worker != prompt.holder:
        return False
    if decision.cached_tokens < prompt.cached_tokens:
        raise WrongAnswer(f"{decision.cached_tokens} of {prompt.cached_tokens} tokens are known")
    return True
