"""A fleet that somebody provisions for the peak and then leaves alone: how large it is. Pure.

Who does that knows the day beforehand: how many requests its busiest minute has and what they are
like. He has measured an engine (`tokenplane profile`), and takes as many as serve that minute, if
it went on for ever, to the share of requests that was promised. He does not look for the smallest
fleet that the very requests which are going to come would bear: that is hindsight, and the
oracle's.

A minute, as requests are promised seconds: a fleet that is large enough on average over a longer
time is too small for minutes of it.
"""

from __future__ import annotations

import numpy as np

from controlplane.capacity import Curve, class_of
from controlplane.planner.estimate import Engine, Load, needed
from controlplane.planner.profile import AnswerSample, PromptSample, fit
from controlplane.planner.settings import PlannerSettings
from controlplane.replay.capacity import ideal_cached_tokens
from controlplane.replay.fleet import SimulatedWorker
from controlplane.replay.simulate import Scenario
from proto.ids import WorkerId
from proto.workers import Role
from workers.sim.timing import Profile, attention_pairs

WINDOW_S = 60.0
STEP_S = 5.0
"""Between the windows that are looked at."""
PROMPTS = (64, 512, 2_048, 8_192, 32_768)
BATCHES, CONTEXTS, TOKENS = (1, 8, 32), (256, 2_048, 16_384), 64


def provisioned(scenario: Scenario, settings: PlannerSettings, goal: float, most: int) -> int:
    """Engines that serve the busiest minute, at most `most`."""
    engine = _engine(scenario)
    windows = _minutes(scenario)
    needs = (needed(each, engine, Role.AGGREGATED, goal, settings.kv_max) for each in windows)
    return max(1, min(most, int(max(needs, default=1.0))))


def _minutes(scenario: Scenario) -> list[Load]:
    """What each minute of the trace asks for."""
    requests, targets = scenario.requests, scenario.targets
    arrivals = np.array([each.arrival_s for each in requests])
    prompts = np.array([each.input_tokens for each in requests], dtype=float)
    outputs = np.array([each.output_tokens for each in requests], dtype=float)
    cached = np.array(ideal_cached_tokens(scenario.names, scenario.block_tokens), dtype=float)
    new = np.maximum(1.0, prompts - cached)
    loads = []
    for start_s in np.arange(arrivals[0], max(arrivals[0] + 1, arrivals[-1] - WINDOW_S), STEP_S):
        first, last = np.searchsorted(arrivals, (start_s, start_s + WINDOW_S))
        if last - first < 2:
            continue
        part = slice(first, last)
        gaps = np.diff(arrivals[part])
        count = last - first
        loads.append(
            Load(
                rate=count / WINDOW_S,
                burstiness=max(1.0, float(gaps.var() / max(1e-9, gaps.mean() ** 2))),
                prompt_tokens=prompts[part],
                new_tokens=new[part],
                after_first=np.maximum(0.0, outputs[part] - 1),
                ttft_ms=np.full(count, targets.ttft_ms),
                tpot_ms=np.full(count, targets.tpot_ms),
            )
        )
    return loads


def _engine(scenario: Scenario) -> Engine:
    """An engine as `tokenplane profile` finds it."""
    profile = scenario.profiles[0]
    record = SimulatedWorker(WorkerId("w"), profile, scenario.block_tokens, scenario.blocks).record(
        kv_events=True
    )
    found = fit(
        class_of(record),
        [PromptSample(tokens, _prompt_ms(profile, tokens)) for tokens in PROMPTS],
        [
            AnswerSample(batch, context, TOKENS, _gap_ms(profile, batch, context))
            for batch in BATCHES
            for context in CONTEXTS
        ],
        profile.max_num_batched_tokens,
    )
    kv_tokens = record.total_blocks * record.block_tokens
    curve: Curve = found.curve
    return Engine(curve, record.max_batched_tokens, record.max_running, kv_tokens)


def _prompt_ms(profile: Profile, tokens: int) -> float:
    """A prompt alone in the engine, to its first token."""
    chunk, spent_ms = profile.max_num_batched_tokens, 0.0
    for done in range(0, tokens, chunk):
        size = min(chunk, tokens - done)
        spent_ms += profile.cost.step_ms(size, attention_pairs(size, done), 0, 0)
    return spent_ms


def _gap_ms(profile: Profile, batch: int, context: int) -> float:
    return profile.cost.step_ms(0, 0.0, batch, batch * context)
