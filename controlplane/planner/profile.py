"""What an engine can do, measured before it has any load: a planner's first capacity model.

A profile is made of single prompts of several lengths, which tell what prompt tokens cost, and of
several answers at once, which tell what sequences and their context cost. Both are written down as
what engines say of their steps (`proto.load.StepSums`), so that it is the same model that is fitted
to them and, later, goes on learning from live steps. It is of one worker class: another engine
version finds nothing in it (HW5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from controlplane.capacity import CapacityModel, Curve, Kept, WorkerClass
from proto.load import StepSums

VERSION = 1


class PromptSample(msgspec.Struct, frozen=True):
    """A prompt alone in the engine."""

    prompt_tokens: int
    ttft_ms: float


class AnswerSample(msgspec.Struct, frozen=True):
    """Answers at the same time."""

    batch: int
    context_tokens: int
    """Of each, on average while it was written."""
    tokens: int
    """Of each answer, over which the gap was taken."""
    gap_ms: float


class Profile(msgspec.Struct, frozen=True):
    """What was measured, and what was fitted to it."""

    version: int
    worker_class: WorkerClass
    prompts: list[PromptSample]
    answers: list[AnswerSample]
    curve: Curve
    kept: Kept


class ProfileUnusable(ValueError):
    """A file that is no profile; says why."""


def fit(
    worker_class: WorkerClass,
    prompts: Sequence[PromptSample],
    answers: Sequence[AnswerSample],
    budget_tokens: int,
) -> Profile:
    """A profile of these samples; `budget_tokens` is what a step computes of prompts, at most.
    ValueError if there are none of either."""
    if not prompts or not answers:
        raise ValueError("both prompts and answers must have been measured")
    model = CapacityModel()
    intervals = [
        StepSums(
            steps=math.ceil(each.prompt_tokens / budget_tokens),
            prefill_tokens=each.prompt_tokens,
            prefill_ms=each.ttft_ms,
        )
        for each in prompts
    ] + [
        StepSums(
            steps=each.tokens,
            decode_batch=each.tokens * each.batch,
            decode_kv_tokens=each.tokens * each.batch * each.context_tokens,
            decode_ms=each.tokens * each.gap_ms,
        )
        for each in answers
    ]
    while model.curve is None:
        for interval in intervals:
            model.observe(interval)
    kept = model.kept()
    model.restore(kept)  # what a planner begins with, which is fitted to all of it
    return Profile(VERSION, worker_class, list(prompts), list(answers), model.curve, kept)


def read(data: bytes) -> Mapping[WorkerClass, Kept]:
    """What capacity models begin with. Raises `ProfileUnusable`."""
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except msgspec.DecodeError as error:
        raise ProfileUnusable(f"not a capacity profile: {error}") from error
    if profile.version != VERSION:
        raise ProfileUnusable(f"profile version {profile.version}, this build reads {VERSION}")
    return {profile.worker_class: profile.kept}
