from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from controlplane.replay.generate import Workload, generate, write
from controlplane.replay.trace import load_trace

SMALL = Workload(conversations=200, rate=2.0, turns=3.0, think_s=5.0)


def test_equal_settings_are_equal_bytes_and_another_seed_is_not(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jsonl.gz" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write(generate(SMALL, random.Random(seed)), path)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_the_loader_takes_every_line(tmp_path: Path, name: str) -> None:
    lines = write(generate(SMALL, random.Random(3)), tmp_path / name)
    trace = load_trace(tmp_path / name, context_tokens=SMALL.context_tokens + 1)
    assert len(trace.requests) == lines > 200
    assert (trace.malformed, trace.too_long, trace.outputs_cut) == (0, 0, 0)


def test_a_turn_resends_everything_said_before() -> None:
    requests = list(generate(replace(SMALL, conversations=1, turns=30.0), random.Random(4)))
    assert len(requests) > 3
    for before, after in pairwise(requests):
        assert after.arrival_s > before.arrival_s
        assert after.input_tokens > before.input_tokens + before.output_tokens
        assert after.hash_ids[: len(before.hash_ids)] == before.hash_ids


def test_a_few_system_prompts_are_very_common() -> None:
    workload = replace(SMALL, conversations=2000, turns=1.0, system_prompts=50, zipf=1.2)
    requests = list(generate(workload, random.Random(5)))
    shares = [n / 2000 for _, n in Counter(r.hash_ids[0] for r in requests).most_common()]
    assert len(shares) > 30
    assert shares[0] > 0.2
    assert shares[-1] < 0.01


def test_ids_are_numbered_as_they_are_seen() -> None:
    seen: list[int] = []
    for request in generate(SMALL, random.Random(6)):
        seen += [i for i in request.hash_ids if i not in set(seen)]
    assert seen == list(range(len(seen)))


def test_means_are_what_was_asked_for() -> None:
    workload = replace(SMALL, conversations=4000, turns=1.0, system_blocks_max=1)
    requests = list(generate(workload, random.Random(7)))
    messages = sum(r.input_tokens - 512 for r in requests) / len(requests)
    answers = sum(r.output_tokens for r in requests) / len(requests)
    assert messages == pytest.approx(workload.message_tokens, rel=0.1)
    assert answers == pytest.approx(workload.output_tokens, rel=0.1)
    assert requests[-1].arrival_s == pytest.approx(4000 / workload.rate, rel=0.1)


def test_conversations_end_at_the_context() -> None:
    workload = replace(SMALL, turns=1e9, conversations=5, context_tokens=5000)
    requests = list(generate(workload, random.Random(8)))
    assert 0 < max(r.input_tokens + r.output_tokens for r in requests) <= 5000


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("conversations", 0),
        ("rate", 0.0),
        ("rate", float("nan")),
        ("turns", 0.5),
        ("think_s", -1.0),
        ("message_tokens", 0.0),
        ("system_blocks_max", 0),
        ("system_prompts", -1),
        ("siblings", 0),
        ("long_share", 1.5),
    ],
)
def test_impossible_workloads_are_refused(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=knob):
        replace(Workload(), **{knob: value})  # type: ignore[arg-type]


def test_siblings_come_together_with_a_prefix_that_nobody_had() -> None:
    workload = replace(
        SMALL, conversations=60, turns=1.0, siblings=8, system_blocks_min=4, system_blocks_max=4
    )
    requests = list(generate(workload, random.Random(9)))
    assert len(requests) == 60
    bursts: dict[tuple[int, ...], list[float]] = {}
    for request in requests:
        bursts.setdefault(request.hash_ids[:4], []).append(request.arrival_s)
    assert sorted(map(len, bursts.values())) == [4] + [8] * 7
    assert max(times[-1] - times[0] for times in bursts.values()) < 0.1
    assert len({i for prefix in bursts for i in prefix}) == 4 * len(bursts)


def test_without_system_prompts_nothing_is_shared() -> None:
    workload = replace(SMALL, turns=1.0, system_prompts=0)
    requests = list(generate(workload, random.Random(10)))
    ids = [i for request in requests for i in request.hash_ids]
    assert len(ids) == len(set(ids))


def test_a_share_of_messages_is_long() -> None:
    workload = replace(
        SMALL, conversations=2000, turns=1.0, system_prompts=0, sigma=0.1, long_share=0.25
    )
    lengths = [r.input_tokens for r in generate(workload, random.Random(11))]
    long = [tokens for tokens in lengths if tokens > 5 * workload.message_tokens]
    assert len(long) == pytest.approx(500, rel=0.15)
    short_mean = (sum(lengths) - sum(long)) / (len(lengths) - len(long))
    assert sum(long) / len(long) == pytest.approx(32 * short_mean, rel=0.05)
