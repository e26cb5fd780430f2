"""A public load generator against a whole cluster: `make load-test`.

`aiperf` has its own client, its own tokenizer and its own idea of what a well-formed stream is,
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
from controlplane.local.options import ClusterOptions
from proto.wire.http import HttpClient

AIPERF = Path(sys.prefix).with_name(".venv-load") / "bin" / "aiperf"
ENGINES, GATEWAYS, SPEED = 4, 2, 20.0
CALLERS = 32
PROMPT_TOKENS, OUTPUT_TOKENS, SPREAD_TOKENS = 128, 32, 16
ENDPOINTS = ("chat", "completions")
REPORT = "profile_export_aiperf.json"


class _Count(msgspec.Struct):
    avg: float = 0.0


class _Report(msgspec.Struct):
    request_count: _Count
    error_request_count: _Count | None = None


async def run(aiperf: Path, requests: int) -> bool:
    """Send the whole profile, half of it to each endpoint; whether all of it was served well."""
    well, each = True, requests // len(ENDPOINTS)
    options = ClusterOptions(
        name="load-test", port=0, engines=ENGINES, gateways=GATEWAYS, speed=SPEED
    )
    async with HttpClient() as http, run_cluster(options, http) as cluster:
        for endpoint in ENDPOINTS:
            report = await _load(aiperf, cluster, endpoint, each)
            served = int(report.request_count.avg)
            failed = int(report.error_request_count.avg) if report.error_request_count else 0
            print(f"{endpoint}: {served} served, {failed} failed", flush=True)
            well &= not failed and served == each
    return well


async def _load(aiperf: Path, cluster: LocalCluster, endpoint: str, requests: int) -> _Report:
    with tempfile.TemporaryDirectory(prefix="tokenplane-load-") as made:
        words = (str(aiperf), "profile", *_words(cluster, endpoint, requests, made))
        await anyio.run_process(words, stdout=None, stderr=None, cwd=made)
        return msgspec.json.decode((Path(made) / REPORT).read_bytes(), type=_Report)


def _words(cluster: LocalCluster, endpoint: str, requests: int, folder: str) -> Iterator[str]:
    yield from ("--model", cluster.model, "--tokenizer", str(cluster.layout.model))
    yield from ("--url", cluster.url, "--endpoint-type", endpoint, "--streaming")
    yield from ("--concurrency", str(CALLERS), "--request-count", str(requests))
    yield from ("--isl", str(PROMPT_TOKENS), "--isl-stddev", str(SPREAD_TOKENS))
    yield from ("--osl", str(OUTPUT_TOKENS), "--osl-stddev", str(SPREAD_TOKENS))
    yield from ("--extra-inputs", "ignore_eos:true", "--random-seed", "1")
    yield from ("--artifact-dir", folder, "--ui-type", "none", "--workers-max", "2")
    yield from ("--no-gpu-telemetry", "--no-server-metrics")


def main() -> int:
    """`python -m bench.load_test`"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--aiperf", type=Path, default=AIPERF)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    backend = {"use_uvloop": True}
    tool = options.aiperf.absolute()
    return 0 if anyio.run(run, tool, options.requests, backend_options=backend) else 1


if __name__ == "__main__":
    sys.exit(main())
