"""Why a request went where it went: `python explain.py REQUEST [CLUSTER]`."""

from __future__ import annotations

import sys

import anyio

from controlplane.client.cluster import Cluster


async def main(request: str, name: str) -> None:
    async with Cluster.at(name) as cluster:
        for decision in await cluster.explain(request):
            print(f"attempt {decision.attempt}: {decision.worker or decision.reason}")
            for term in decision.terms:
                print(f"  {term.worker}: {term.excluded or f'cost {term.cost:.1f}'}")


anyio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "local")
