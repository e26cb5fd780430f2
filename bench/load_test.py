"""A public load generator against a whole cluster: `make load-test`.

`guidellm` has its own client, its own tokenizer and its own idea of what a well-formed stream is,
so it finds what our own clients would never notice. Fails if any request of the profile does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec

from controlplane.local.cluster import LocalCluster, run_cluster
from controlplane.local.plan import ClusterOptions
from proto.wire.http import HttpClient

GUIDELLM = Path(sys.prefix).with_name(".venv-load") / "bin" / "guidellm"
ENGINES, GATEWAYS, SPEED = 4, 2, 20.0
CALLERS = 32
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 32
FORMATS = ("/v1/chat/completions", "/v1/completions")


class _Totals(msgspec.Struct):
    successful: int
    errored: int
    incomplete: int


class _Metrics(msgspec.Struct):
    request_totals: _Totals


class _Benchmark(msgspec.Struct):
    metrics: _Metrics


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


async def run(guidellm: Path, requests: int) -> bool:
    """Send the whole profile, half of it in each format; whether all of it was served well."""
    well = True
    options = ClusterOptions(
        name="load-test", port=0, engines=ENGINES, gateways=GATEWAYS, speed=SPEED
    )
    async with HttpClient() as http, run_cluster(options, http) as cluster:
        for path in FORMATS:
            totals = await _load(guidellm, cluster, path, requests // len(FORMATS))
            print(
                f"{path}: {totals.successful} served, {totals.errored} failed,"
                f" {totals.incomplete} cut off"
            )
            well &= not totals.errored and totals.successful >= requests // len(FORMATS)
    return well


async def _load(guidellm: Path, cluster: LocalCluster, path: str, requests: int) -> _Totals:
    with tempfile.TemporaryDirectory(prefix="tokenplane-load-") as made:
        report = Path(made) / "report.json"
        words = [str(guidellm), "run", *_words(cluster, path, requests, report)]
        await anyio.run_process(words, stdout=None, stderr=None)
        [benchmark] = msgspec.json.decode(report.read_bytes(), type=_Report).benchmarks
    return benchmark.metrics.request_totals


def _words(cluster: LocalCluster, path: str, requests: int, report: Path) -> Iterator[str]:
    model = cluster.model
    yield from (
        "--backend",
        f"kind=openai_http,target={cluster.url},model={model},request_format={path}",
    )
    yield from ("--profile", f"kind=concurrent,streams={CALLERS}")
    yield from ("--constraint", f"kind=max_requests,count={requests}")
    yield from ("--tokenizer", f"kind=hf_auto,model={cluster.layout.model}")
    tokens = f"prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    yield from ("--data", f"kind=synthetic_text,{tokens}")
    yield from ("--output", f"kind=json,path={report}", "--disable-console")


def main() -> int:
    """`python -m bench.load_test`"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--guidellm", type=Path, default=GUIDELLM)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    served = anyio.run(
        run, options.guidellm, options.requests, backend_options={"use_uvloop": True}
    )
    return 0 if served else 1


if __name__ == "__main__":
    sys.exit(main())
