"""transfer: moving KV blocks between two engines, and what the coordinator adds to it.

Blocks beside as many plain bytes: one process sends, another receives, over the loopback. A plain
copy sends what lies ready and looks at nothing; ours makes each block from its name, and sums up
and compares every one that comes.

A handoff beside the same two calls without a ticket: two simulated engines, one prefills, the other
one fetches and answers; ours begins a ticket before, and reports between the two.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from statistics import median

import anyio

from bench.measure import OURS, PEER, in_turns
from bench.options import Options
from bench.rig import CLUSTER, Rig, open_rig
from bench.rows import Bar, Row, row
from controlplane.gateway.tickets import Tickets, landed
from controlplane.local.ports import LOOPBACK, free_ports
from proto.codec import Producer
from proto.ids import RequestId, ServiceId, WorkerId, new_incarnation
from proto.subjects import Keys, Subjects
from proto.transfers import Begin, Granted, Part, Report, Step, Ticket
from proto.wire.ports import Http
from proto.workers import KvTransfer, Role, WorkerRecord, WorkerState
from workers.sim.kvframes import Content, Question
from workers.sim.kvreader import KvReader
from workers.sim.kvserver import KvServer
from workers.sim.staging import Staging

BARS = (
    Bar("*MiB blocks", "ratio", "at least", 0.8),
    Bar("added by the coordinator", "ours", "at most", 3.0),
)
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = (1 << 16, 5 << 20)
"""Of 16 tokens, in the laptop profile and in that of a 70B model."""
MODEL = "bench"
PROMPT = [5 + n % 90 for n in range(256)]


def run(options: Options) -> Iterator[Row]:
    """Movement by block size, then a handoff."""
    total_bytes = (64 if options.quick else 512) << 20
    for block_bytes in BLOCK_BYTES:
        sides = {
            OURS: partial(_moved_gb_s, block_bytes, total_bytes),
            PEER: partial(_copied_gb_s, total_bytes),
        }
        figures = in_turns(sides, options.rounds)
        case = f"{block_bytes / (1 << 20):g} MiB blocks"
        yield row(case, "GB/s", figures[OURS], figures[PEER])
    ours_ms, direct_ms = anyio.run(_handoffs, 20 if options.quick else 300)
    yield row("handoff, p50", "ms", ours_ms, direct_ms)
    yield row("added by the coordinator", "ms", ours_ms - direct_ms)


# --- movement


def _moved_gb_s(block_bytes: int, total_bytes: int) -> float:
    names = [hash((block_bytes, n)) % (1 << 255) for n in range(max(1, total_bytes // block_bytes))]
    with _process(_serve_blocks, block_bytes, names) as (address, pages):
        reader = KvReader(address, Content(block_bytes))
        began_s = time.perf_counter()
        moved = reader.read(Question("read", "r", "life", pages), names)
        return moved / (time.perf_counter() - began_s) / 1e9


def _serve_blocks(told: Connection, stop: Event, block_bytes: int, names: list[int]) -> None:
    server = KvServer(
        (LOOPBACK, 0), "life", Content(block_bytes), Staging(60.0), on_done=lambda _: None
    )
    told.send((server.address, server.stage("r", names, None)))
    stop.wait()
    server.close()


def _copied_gb_s(total_bytes: int) -> float:
    with (
        _process(_serve_bytes, total_bytes) as (address, _),
        socket.create_connection(address) as connection,
    ):
        view, left = memoryview(bytearray(CHUNK_BYTES)), total_bytes
        began_s = time.perf_counter()
        while left:
            left -= connection.recv_into(view[: min(left, CHUNK_BYTES)])
        return total_bytes / (time.perf_counter() - began_s) / 1e9


def _serve_bytes(told: Connection, stop: Event, total_bytes: int) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        told.send((listener.getsockname(), []))
        connection, _ = listener.accept()
        with connection:
            data = bytes(CHUNK_BYTES)
            for _ in range(total_bytes // CHUNK_BYTES):
                connection.sendall(data)
            stop.wait()


class _process:
    """A process that serves; gives where, and which pages."""

    def __init__(self, serve: Callable[..., None], *words: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._stop = context.Event()
        self._process = context.Process(target=serve, args=(theirs, self._stop, *words))

    def __enter__(self) -> tuple[tuple[str, int], list[int]]:
        self._process.start()
        address, pages = self._mine.recv()
        return address, pages

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._process.join()


# --- a handoff


async def _handoffs(count: int) -> tuple[float, float]:
    """With a ticket, and without; median milliseconds of each, measured in turns."""
    async with open_rig() as rig:
        prefill, decode = (
            await _engine(rig, "p", Role.PREFILL),
            await _engine(rig, "d", Role.DECODE),
        )
        tickets = await _coordinator(rig)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tickets.run)
            ours_ms, direct_ms = [], []
            for number in range(count):
                prompt = [number % 900, *PROMPT]
                direct_ms.append(await _handoff(rig.carriers.http, prefill, decode, prompt, None))
                prompt = [number % 900, number // 900 + 1, *PROMPT]
                ours_ms.append(await _handoff(rig.carriers.http, prefill, decode, prompt, tickets))
            tasks.cancel_scope.cancel()
        return median(ours_ms), median(direct_ms)


async def _handoff(
    http: Http, prefill: str, decode: str, prompt: list[int], tickets: Tickets | None
) -> float:
    began_s = time.perf_counter()
    ticket = None if tickets is None else await _begin(tickets, len(prompt))
    staged = await _ask(http, prefill, prompt, {"do_remote_decode": True})
    where = staged["kv_transfer_params"]
    if tickets is not None and ticket is not None:
        said = Report(ticket.id, ticket.fence, Step.TRANSFER, handle=json.dumps(where).encode())
        assert isinstance(await tickets.report(said), Ticket)
    await _ask(http, decode, prompt, where)
    took_ms = (time.perf_counter() - began_s) * 1000
    if tickets is not None and ticket is not None:
        tickets.report_later(landed(ticket, took_ms / 1000))
    return took_ms


async def _begin(tickets: Tickets, tokens: int) -> Ticket:
    part = Part(WorkerId("d"), 1, tokens)
    request = RequestId(f"r{time.perf_counter_ns()}")
    reply = await tickets.begin(Begin(request, MODEL, ServiceId("bench"), tokens, part))
    assert isinstance(reply, Granted), reply
    return reply.ticket


async def _ask(http: Http, url: str, prompt: list[int], transfer: object) -> dict[str, object]:
    body = {"prompt": prompt, "max_tokens": 1, "kv_transfer_params": transfer}
    async with http.exchange(
        "POST",
        f"{url}/v1/completions",
        body=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    ) as answer:
        found: dict[str, object] = json.loads(await answer.read())
        assert answer.status == 200, found
        return found


async def _engine(rig: Rig, name: str, role: Role) -> str:
    """A simulated engine that computes in no time, and its record."""
    port, kv_port = free_ports(2)
    url = f"http://{LOOPBACK}:{port}"
    words = ("-m", "workers.sim", "--model", MODEL, "--port", str(port), "--speed", "1000")
    argv = (sys.executable, *words, "--kv-port", str(kv_port))
    await rig.start(f"engine-{name}", argv, f"{url}/health", {})
    record = WorkerRecord(
        worker=WorkerId(name),
        incarnation=1,
        model=MODEL,
        engine="sim",
        url=url,
        role=role,
        state=WorkerState.READY,
        block_tokens=16,
        total_blocks=1 << 20,
        max_running=1 << 20,
        transfer=KvTransfer(connector="sim-tcp", block_bytes=1 << 16),
    )
    key = Keys(CLUSTER).worker(record.worker)
    await rig.carriers.store.put(key, record.model_dump_json().encode())
    return url


async def _coordinator(rig: Rig) -> Tickets:
    """Its process, and our words with it."""
    (port,) = free_ports(1)
    url = f"http://{LOOPBACK}:{port}"
    environment = {
        "TOKENPLANE_CLUSTER": CLUSTER,
        "TOKENPLANE_NATS__SERVERS": json.dumps(rig.settings.nats.servers),
        "TOKENPLANE_ETCD__ENDPOINTS": json.dumps(rig.settings.etcd.endpoints),
        "TOKENPLANE_ADMIN__PORT": str(port),
        "TOKENPLANE_TRANSFER__CHOICE": "remote",
    }
    argv = (sys.executable, "-m", "controlplane.cli.main", "transfer")
    await rig.start("transfer", argv, f"{url}/ready", environment)
    producer = Producer(ServiceId("bench"), new_incarnation(time.time()), time.time)
    return Tickets(rig.carriers.bus, Subjects(CLUSTER), producer, 3.0)
