"""Both legs of a request, as engines take them: real HTTP to stand-ins of those that need a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from controlplane.gateway.dialects import SHARED_FILES, NoHandle, dialect_of
from controlplane.gateway.migration import Leg
from proto.ids import Incarnation, RequestId, ServiceId, WorkerId
from proto.transfers import End, Ticket, TicketId
from proto.wire.http import HttpClient
from proto.workers import HandoffOrder, KvTransfer, Role, WorkerRecord
from tests.support.engines.handover import SglangMeeting, TrtllmHandover
from tests.support.engines.sglang import sglang
from tests.support.engines.standin import MODEL
from tests.support.engines.trtllm import trtllm

pytestmark = pytest.mark.anyio

BODY = {"model": MODEL, "prompt": list(range(10, 60)), "max_tokens": 6, "stream": False}
LEG = Leg("/v1/completions", json.dumps(BODY).encode())


def record(engine: str, url: str, transfer: KvTransfer) -> WorkerRecord:
    return WorkerRecord(
        worker=WorkerId("p"),
        incarnation=1,
        model=MODEL,
        engine=engine,
        url=url,
        role=Role.PREFILL,
        block_tokens=16,
        total_blocks=96,
        transfer=transfer,
    )


def ticket(order: HandoffOrder) -> Ticket:
    end = End(WorkerId("p"), Incarnation(1), "http://p", "sglang")
    return Ticket(
        TicketId("00ff" * 8), RequestId("r"), MODEL, ServiceId("g"), order, prefill=end, decode=end
    )


async def post(http: HttpClient, url: str, leg: Leg) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    async with http.exchange("POST", url + leg.path, body=leg.body, headers=headers) as response:
        return response.status, await response.read()


def text(answer: bytes) -> str:
    return str(json.loads(answer)["choices"][0]["text"])


async def test_sglangs_two_engines_meet_in_a_room(tmp_path: Path) -> None:
    """Asked at the same time, as each waits for the other."""
    meeting = SglangMeeting("10.1.2.3", 8998)
    order, now = HandoffOrder.OVERLAPPED, ticket(HandoffOrder.OVERLAPPED)
    transfer = KvTransfer(connector="nixl", order=order, bootstrap="10.1.2.3:8998")
    answers: dict[str, tuple[int, bytes]] = {}
    async with (
        sglang(tmp_path, handed=lambda *call: meeting.complete("prefill", *call)) as one,
        sglang(tmp_path, handed=lambda *call: meeting.complete("decode", *call)) as other,
        HttpClient() as http,
    ):
        prefill = record("sglang", one, transfer)
        dialect = dialect_of(prefill, order)
        assert dialect is not None

        async def ask(side: str, url: str, leg: Leg) -> None:
            answers[side] = await post(http, url, leg)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "prefill", one, dialect.prefill(LEG, now, prefill))
            tasks.start_soon(ask, "decode", other, dialect.decode(LEG, now, prefill, b""))
        wrong = transfer.model_copy(update={"bootstrap": "10.1.2.3:1"})
        astray = dialect.decode(LEG, now, record("sglang", one, wrong), b"")
        assert (await post(http, other, astray))[0] == 500
    assert [status for status, _ in answers.values()] == [200, 200]
    assert len(meeting.rooms) == 1


async def test_trtllms_state_is_handed_on_as_it_is(tmp_path: Path) -> None:
    handover = TrtllmHandover()
    order, now = HandoffOrder.PREFILL_FIRST, ticket(HandoffOrder.PREFILL_FIRST)
    async with (
        trtllm(tmp_path, handed=lambda *call: handover.complete("prefill", *call)) as one,
        trtllm(tmp_path, handed=lambda *call: handover.complete("decode", *call)) as other,
        HttpClient() as http,
    ):
        prefill = record("trtllm", one, KvTransfer(connector="cache_transceiver"))
        dialect = dialect_of(prefill, order)
        assert dialect is not None
        status, staged = await post(http, one, dialect.prefill(LEG, now, prefill))
        assert status == 200
        handle = dialect.handle(staged)
        leg = dialect.decode(LEG, now, prefill, handle)
        status, answer = await post(http, other, leg)
        assert status == 200, answer
        assert text(answer)
        assert (await post(http, other, leg))[0] == 500  # what was staged has been taken
        with pytest.raises(NoHandle):
            dialect.handle(answer)
    assert len(handover.taken) == 1


def test_vllms_blocks_are_named_by_whoever_prefilled() -> None:
    transfer = KvTransfer(connector="nixl")
    prefill = record("vllm", "http://p", transfer)
    dialect = dialect_of(prefill, HandoffOrder.PREFILL_FIRST)
    assert dialect is not None
    now = ticket(HandoffOrder.PREFILL_FIRST)
    staging = fields(dialect.prefill(LEG, now, prefill))
    assert (staging["max_tokens"], staging["stream"]) == (1, False)
    assert staging["kv_transfer_params"]["do_remote_decode"]
    told = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_engine_id": "e"}
    handle = dialect.handle(json.dumps({"kv_transfer_params": told}).encode())
    asked = fields(dialect.decode(LEG, now, prefill, handle))
    assert asked == {**BODY, "kv_transfer_params": told}
    with pytest.raises(NoHandle):
        dialect.handle(b'{"kv_transfer_params": null}')


def test_a_shared_directory_needs_no_words() -> None:
    prefill = record("vllm", "http://p", KvTransfer(connector=SHARED_FILES))
    dialect = dialect_of(prefill, HandoffOrder.PREFILL_FIRST)
    assert dialect is not None
    now = ticket(HandoffOrder.PREFILL_FIRST)
    assert fields(dialect.prefill(LEG, now, prefill))["max_tokens"] == 1
    handle = dialect.handle(b'{"kv_transfer_params": null}')
    assert handle  # there is something to decode from
    assert dialect.decode(LEG, now, prefill, handle) == LEG


def fields(leg: Leg) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(leg.body)
    return said
