from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from controlplane.replay.trace import (
    DROPPED_KEPT,
    Dropped,
    TraceRequest,
    TraceUnreadable,
    load_trace,
    read,
)

CONTEXT = 131_072


def line(
    timestamp: object = 0, input_length: object = 700, output_length: object = 5, **more: object
) -> str:
    fields = {
        "timestamp": timestamp,
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": [1, 2],
    }
    return json.dumps(fields | more)


def written(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_good_line_becomes_a_request(tmp_path: Path) -> None:
    trace = load_trace(
        written(tmp_path, line(timestamp=1500, unknown_field=1)), context_tokens=CONTEXT
    )
    assert trace.requests == [TraceRequest(1.5, 700, 5, (1, 2))]
    assert (trace.malformed, trace.too_long, trace.outputs_cut, trace.dropped) == (0, 0, 0, [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"timestamp": 0,', "truncated"),
        ("not json", "malformed"),
        ("[1, 2]", "Expected `object`"),
        (line(timestamp=-1), "timestamp"),
        (line(timestamp="0"), "timestamp"),
        (line(input_length=-700), "input_length"),
        (line(input_length=0, hash_ids=[]), "input_length"),
        (line(output_length=0), "output_length"),
        (line(output_length=1.5), "output_length"),
        (line(hash_ids=[1, "2"]), "hash_ids[...]"),
        (line(hash_ids=[1, 2.5]), "hash_ids[...]"),
        (line(hash_ids=[1, -2]), "hash_ids[...]"),
        (line(hash_ids=[1, 2**64]), "hash_ids[...]"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}', "missing required field"),
        (line(hash_ids=[1]), "makes 2 blocks of 512, but there are 1 hash_ids"),
        (line(hash_ids=[1, 2, 3]), "makes 2 blocks of 512, but there are 3 hash_ids"),
        (line(timestamp=999), "timestamp 999 is before the last one, 1000"),
    ],
)
def test_a_bad_line_is_dropped_with_its_number_and_reason(
    tmp_path: Path, bad: str, reason: str
) -> None:
    path = written(tmp_path, line(timestamp=1000), bad, line(timestamp=1000))
    trace = load_trace(path, context_tokens=CONTEXT)
    assert len(trace.requests) == 2
    assert trace.malformed == 1
    [dropped] = trace.dropped
    assert dropped.line == 2
    assert all(word in dropped.reason for word in reason.split("[...]"))


def test_bytes_that_are_not_text_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"x": "\xff\xfe"}\n' + line().encode() + b"\n")
    trace = load_trace(path, context_tokens=CONTEXT)
    assert (len(trace.requests), trace.malformed, trace.dropped[0].line) == (1, 1, 1)


def test_ties_keep_the_order_of_lines_and_blank_lines_are_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, line(output_length=1), "", line(output_length=2), "  ")
    assert [number for number, _ in read(path)] == [1, 3]
    assert [r.output_tokens for r in load_trace(path, context_tokens=CONTEXT).requests] == [1, 2]


def test_compressed_traces_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    packed = gzip.compress((line() + "\n").encode() * 1000)
    path.write_bytes(packed)
    assert len(load_trace(path, context_tokens=CONTEXT).requests) == 1000
    for damaged in (packed[:-20], b"plain text"):
        path.write_bytes(damaged)
        with pytest.raises(TraceUnreadable, match=r"trace\.jsonl\.gz"):
            load_trace(path, context_tokens=CONTEXT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable, match="nowhere"):
        load_trace(tmp_path / "nowhere.jsonl", context_tokens=CONTEXT)


def test_prompts_that_fill_the_context_are_dropped_and_outputs_cut(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        line(input_length=1000),
        line(input_length=999, output_length=9),
        line(input_length=990, output_length=10),
    )
    trace = load_trace(path, context_tokens=1000)
    assert [r.output_tokens for r in trace.requests] == [1, 10]
    assert (trace.malformed, trace.too_long, trace.outputs_cut) == (0, 1, 1)
    assert trace.dropped == [Dropped(1, "input_length 1000 fills the context of 1000")]


def test_limit_counts_usable_requests_and_rate_scale_brings_them_sooner(tmp_path: Path) -> None:
    path = written(tmp_path, "bad", line(timestamp=0), line(timestamp=4000), line(timestamp=9000))
    trace = load_trace(path, limit=2, context_tokens=CONTEXT, rate_scale=4.0)
    assert [r.arrival_s for r in trace.requests] == [0.0, 1.0]
    assert trace.malformed == 1


def test_all_dropped_lines_are_counted_but_not_all_kept(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path, *["bad"] * (DROPPED_KEPT + 5)), context_tokens=CONTEXT)
    assert (trace.malformed, len(trace.dropped)) == (DROPPED_KEPT + 5, DROPPED_KEPT)


@pytest.mark.data
def test_the_published_conversation_trace_is_whole(shared_data: Path) -> None:
    path = shared_data / "mooncake_conversation.jsonl.gz"
    trace = load_trace(path, context_tokens=CONTEXT)
    assert (len(trace.requests), trace.malformed, trace.too_long) == (12_031, 0, 0)
