"""Requests made up from the gateway's own OpenAPI document, against a cluster: `make api-test`.

`schemathesis` sends what the document allows and what it does not, and looks whether every answer
is one that the document tells of. Models that it makes up are served by nobody, so its requests end
at the border; then it does so again for the model that is served. Those reach an engine, which
refuses more than a document can say, so that what is refused is no fault there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import anyio

from controlplane.gateway.openapi import PATH
from controlplane.local.cluster import run_cluster
from controlplane.local.options import ClusterOptions
from proto.wire.http import HttpClient

HOOKS = {"SCHEMATHESIS_HOOKS": "bench.api_hooks", "PYTHONPATH": str(Path(__file__).parents[1])}
ENGINES_OWN = "positive_data_acceptance,negative_data_rejection"
SCHEMATHESIS = Path(sys.prefix).with_name(".venv-load") / "bin" / "schemathesis"


async def run(schemathesis: Path, examples: int) -> int:
    """The first exit code that is not 0."""
    options = ClusterOptions(name="api-test", port=0, engines=1, speed=20.0)
    with tempfile.TemporaryDirectory(prefix="tokenplane-api-") as notes:
        async with HttpClient() as http, run_cluster(options, http) as cluster:
            words = ("run", f"{cluster.url}{PATH}", "--max-examples", str(examples), "--no-color")
            for more, hooks in (((), {}), (("--exclude-checks", ENGINES_OWN), HOOKS)):
                ended = await anyio.run_process(
                    (str(schemathesis), *words, *more),
                    stdout=None,
                    stderr=None,
                    check=False,
                    cwd=notes,
                    env=os.environ | hooks,
                )
                if ended.returncode:
                    break
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
