"""Requests made up from the gateway's own OpenAPI document, against a cluster: `make api-test`.

`schemathesis` sends what the document allows and what it does not, and looks whether every answer
is one that the document tells of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import anyio

from controlplane.gateway.openapi import PATH
from controlplane.local.cluster import run_cluster
from controlplane.local.plan import ClusterOptions
from proto.wire.http import HttpClient

SCHEMATHESIS = Path(sys.prefix).with_name(".venv-load") / "bin" / "schemathesis"


async def run(schemathesis: Path, examples: int) -> int:
    """Its exit code."""
    options = ClusterOptions(name="api-test", port=0, engines=1, speed=20.0)
    with tempfile.TemporaryDirectory(prefix="tokenplane-api-") as notes:
        async with HttpClient() as http, run_cluster(options, http) as cluster:
            words = ("run", f"{cluster.url}{PATH}", "--max-examples", str(examples), "--no-color")
            ended = await anyio.run_process(
                (str(schemathesis), *words), stdout=None, stderr=None, check=False, cwd=notes
            )
    return ended.returncode


def main() -> int:
    """`python -m bench.api_test`"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schemathesis", type=Path, default=SCHEMATHESIS)
    parser.add_argument("--examples", type=int, default=100)
    options = parser.parse_args()
    backend = {"use_uvloop": True}
    tool = options.schemathesis.resolve()
    return anyio.run(run, tool, options.examples, backend_options=backend)


if __name__ == "__main__":
    sys.exit(main())
