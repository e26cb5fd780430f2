from __future__ import annotations

import json
import random
from pathlib import Path

import anyio
import pytest

from controlplane.cli.generate import main as generate_main
from controlplane.cli.replay import main
from controlplane.replay.generate import Workload, generate, write
from tests.unit.controlplane.replay.server import MODEL, serving, well

FIGURES = {"mean", "p50", "p90", "p99"}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "made-up.jsonl.gz"
    workload = Workload(conversations=30, rate=3.0, turns=2.0, think_s=1.0, output_tokens=40.0)
    write(generate(workload, random.Random(1)), path)
    return path


def test_figures_in_json_and_a_picture(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = [str(trace), "--policy", "kv,round_robin", "--workers", "2", "--profile", "laptop"]
    more = ["--json", str(out), "--plot", str(plot), "--ttft-target-ms", "800", "--limit", "50"]
    assert main([*words, *more]) == 0
    said = json.loads(out.read_text())
    assert list(said) == ["policies", "trace", "settings"]
    assert list(said["policies"]) == ["kv", "round_robin"]
    for figures in said["policies"].values():
        assert set(figures) == {
            "completed", "rejected", "failed", "ttft_ms", "tpot_ms", "hit_rate",
            "ideal_hit_rate", "goodput", "busy", "itl_ms", "accelerator_seconds",
            "cost_per_1k_tokens",
        }  # fmt: skip
        assert set(figures["ttft_ms"]) == set(figures["tpot_ms"]) == FIGURES
        assert (figures["completed"], figures["rejected"], figures["failed"]) == (50, 0, 0)
        assert 0 < figures["hit_rate"] <= figures["ideal_hit_rate"] < 1
    assert said["trace"]["requests"] == 50
    assert said["settings"]["workers"] == 2
    assert said["settings"]["ttft_target_ms"] == 800
    assert said["settings"]["seed"] == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "round_robin" in table
    assert "goodput" in table


def test_what_is_dropped_is_named_and_counted(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed, out = tmp_path / "mixed.jsonl", tmp_path / "out.json"
    good = '{"timestamp": 0, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}'
    lines = [good, "bad", good.replace("600", "60"), good.replace(": 2,", ": 500,"), good]
    mixed.write_text("\n".join([*lines, good.replace("600", "999")]))
    words = [str(mixed), "--profile", "laptop", "--policy", "kv", "--max-model-len", "900"]
    assert main([*words, "--json", str(out)]) == 0
    error = "".join(capsys.readouterr().err.splitlines())
    assert "mixed.jsonl:2: JSON is malformed" in error
    assert "mixed.jsonl:3: input_length 60 makes 1 blocks" in error
    assert "2 malformed lines and 1 prompts over the context dropped" in error
    said = json.loads(out.read_text())["trace"]
    assert (said["requests"], said["malformed"], said["too_long"]) == (3, 2, 1)
    assert said["outputs_cut"] == 1
    assert [reason.partition(":")[0] for reason in said["dropped"]] == [
        "line 2",
        "line 3",
        "line 6",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [("", "has no usable request"), ("bad\n", "has no usable request"), (None, "cannot read")],
)
def test_without_a_usable_line_it_ends_with_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, why: str
) -> None:
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_text(content)
    assert main([str(path)]) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--block-size", "48"], "block size 48 does not divide 512"),
        (["--policy", "kv,nonsense"], "there is no policy 'nonsense'; there are: "),
        (["--policy", "kv,kv"], "name each once"),
        (["--policy", ""], "there is no policy ''"),
        (["--policy", "kv:prefill_weight"], "write name=value"),
        (["--policy", "kv:spin=1"], "kv:spin=1: spin: Extra inputs"),
        (["--policy", "kv:kv_loss=1"], "kv_loss must be at least 0 and below 1"),
        (["--policy", "oracle", "--speed", "1"], "oracle is no policy"),
        (["--profile", "abacus"], "there is no profile 'abacus'; there are: h100"),
        (["--speed", "fast"], "either `virtual`, or how many times faster"),
        (["--speed", "-1"], "either `virtual`, or how many times faster"),
        (["--speed", "nan"], "either `virtual`, or how many times faster"),
        (["--rate-scale", "0"], "greater than 0"),
        (["--workers", "0"], "greater than or equal to 1"),
        (["--url", "localhost:8000"], "must begin with http"),
        (["--json", "nowhere/out.json"], "there is no folder nowhere"),
        (["--json", "."], "is a folder"),
        (["--plot", "out.foo"], "out.foo is none of: .png"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_bad_settings_say_what_is_wrong(
    trace: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert main([str(trace), *words]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.anyio
async def test_live_through_a_server(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [str(trace), "--policy", "kv,random", "--speed", "1e6", "--limit", "20"]
    with anyio.fail_after(60):
        async with serving(well) as server:
            live = [*words, "--url", server.url, "--json", str(out)]
            assert await anyio.to_thread.run_sync(main, live) == 0
    assert server.policies == ["kv"] * 20 + ["random"] * 20
    prompts = [str(body["prompt"]) for body in server.asked]
    assert set(prompts[:20]).isdisjoint(prompts[20:])
    assert {body["model"] for body in server.asked} == {MODEL}
    said = json.loads(out.read_text())
    assert said["policies"]["kv"]["completed"] == 20
    assert said["policies"]["kv"]["busy"] is None
    assert said["policies"]["random"]["hit_rate"] > 0
    assert said["settings"]["url"] == server.url
    assert "workers" not in said["settings"]


def test_live_without_a_cluster_is_an_error(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Port 0 is nobody's.
    assert main([str(trace), "--speed", "10", "--url", "http://127.0.0.1:0"]) == 1
    assert "no cluster at http://127.0.0.1:0" in capsys.readouterr().err


def test_generate_writes_what_replay_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.jsonl"
    words = ["--conversations", "20", "--turns", "2", "--seed", "5", "--context-tokens", "9000"]
    assert generate_main([str(path), *words]) == 0
    lines = path.read_text().splitlines()
    assert f"{len(lines)} requests" in capsys.readouterr().out
    assert len(lines) > 20
    assert main([str(path), "--profile", "laptop", "--policy", "kv"]) == 0


@pytest.mark.parametrize(
    ("words", "why", "code"),
    [
        (["--turns", "0"], "turns", 2),
        (["--system-blocks-min", "5", "--system-blocks-max", "2"], "system_blocks_max", 2),
        (["--nonsense"], "--nonsense", 2),
        (["no/such/folder.jsonl"], "cannot write no/such/folder.jsonl", 1),
    ],
)
def test_generate_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str, code: int
) -> None:
    out = [] if words[0].endswith(".jsonl") else [str(tmp_path / "g.jsonl")]
    assert generate_main([*out, *words]) == code
    assert why in capsys.readouterr().err
