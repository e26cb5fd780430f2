"""What happens, as it happens: `python events.py [CLUSTER] [COUNT]`."""

from __future__ import annotations

import sys

import anyio

from controlplane.client.cluster import Cluster
from proto.load import LoadReport
from proto.records import RequestRecord


async def main(name: str, count: int) -> None:
    async with (
        Cluster.at(name) as cluster,
        cluster.events(LoadReport, RequestRecord) as events,
    ):
        for _ in range(count):
            match await anext(events):
                case LoadReport() as load:
                    print(f"{load.worker}: {load.running} running, {load.waiting} waiting")
                case RequestRecord() as record:
                    print(f"{record.request}: {record.outcome}, {record.output_tokens} tokens")


words = [*sys.argv[1:], *["local", "10"][len(sys.argv) - 1 :]]
anyio.run(main, words[0], int(words[1]))
