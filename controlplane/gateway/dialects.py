"""How each engine is asked to prefill for another one, and to decode what another has prefilled.

Three engines, two orders. vLLM prefills one token, says in `kv_transfer_params` where the blocks
lie, and the decode engine is given that verbatim; TensorRT-LLM does the same with
`disaggregated_params`, whose opaque state is passed on. SGLang is asked on both sides at once, with
the address where they meet and a room of their own.

What a handle says is the engine's; we keep it and hand it on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import msgspec

from controlplane.gateway.migration import Leg
from controlplane.gateway.openai import Api, Ask
from controlplane.gateway.sse import NOT_AS_EXPECTED
from proto.transfers import Ticket
from proto.workers import HandoffOrder, WorkerRecord

Fields = dict[str, msgspec.Raw]

DISAGGREGATED = frozenset({Api.COMPLETIONS.value, Api.CHAT.value})
"""The paths whose requests can be split."""
ROOM_BITS = 62
SHARED_FILES = "shared"
"""The connector of engines that write their blocks into a directory that all of them see."""


class NoHandle(Exception):
    """The prefill engine's answer does not say where the blocks are."""


class Dialect(Protocol):
    """One engine's way."""

    def prefill(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord) -> Leg:
        """The same request, to be prefilled only."""

    def handle(self, answer: bytes) -> bytes:
        """Where the blocks are, from the prefill engine's answer. Raises `NoHandle`."""

    def decode(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord, handle: bytes) -> Leg:
        """The client's own request, to go on from there."""


def dialect_of(prefill: WorkerRecord, order: HandoffOrder) -> Dialect | None:
    """None: that engine hands nothing over in a way that is known here."""
    if prefill.transfer is not None and prefill.transfer.connector == SHARED_FILES:
        return _SharedFiles()
    return _DIALECTS.get((prefill.engine, order))


def obstacle(ask: Ask, leg: Leg) -> str:
    """Why a leg of a request cannot be split, "" if it can."""
    if leg.path not in DISAGGREGATED:
        return "its kind is served by one engine"
    if ask.prompts > 1:
        return "it has several prompts"
    if ask.n > 1:
        return "it asks for several answers"
    fields = _fields(leg)
    for name in ("kv_transfer_params", "disaggregated_params", "echo", "prompt_logprobs"):
        if bytes(fields.get(name, b"null")) not in (b"null", b"false"):
            return f"it asks for {name}"
    return ""


class _KvTransferParams:
    """vLLM, prefill first."""

    def prefill(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord) -> Leg:
        del ticket, prefill
        wanted = {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
        return _one_token(leg, kv_transfer_params=wanted)

    def handle(self, answer: bytes) -> bytes:
        return _found(answer, "kv_transfer_params")

    def decode(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord, handle: bytes) -> Leg:
        del ticket, prefill
        return _with(leg, kv_transfer_params=msgspec.Raw(handle))


class _SharedFiles:
    """vLLM with a shared directory: who decodes finds the blocks there by the prompt itself."""

    def prefill(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord) -> Leg:
        del ticket, prefill
        return _one_token(leg)

    def handle(self, answer: bytes) -> bytes:
        del answer
        return b"{}"

    def decode(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord, handle: bytes) -> Leg:
        del ticket, prefill, handle
        return leg


class _OpaqueState:
    """TensorRT-LLM, prefill first."""

    def prefill(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord) -> Leg:
        del prefill
        wanted = {"request_type": "context_only", "disagg_request_id": _room(ticket)}
        return _one_token(leg, disaggregated_params=wanted)

    def handle(self, answer: bytes) -> bytes:
        try:
            choices = msgspec.json.decode(answer, type=_Choices).choices
        except NOT_AS_EXPECTED as error:
            raise NoHandle(str(error)) from error
        told = choices[0].disaggregated_params if choices else None
        if told is None:
            raise NoHandle("no disaggregated_params in the first choice")
        return msgspec.json.encode(told)

    def decode(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord, handle: bytes) -> Leg:
        del ticket, prefill
        told = msgspec.json.decode(handle, type=Fields)
        told["request_type"] = msgspec.Raw(b'"generation_only"')
        return _with(leg, disaggregated_params=told)


class _Bootstrap:
    """SGLang, overlapped."""

    def prefill(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord) -> Leg:
        return _with(leg, **self._meeting(ticket, prefill))

    def handle(self, answer: bytes) -> bytes:
        del answer
        return b""

    def decode(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord, handle: bytes) -> Leg:
        del handle
        return _with(leg, **self._meeting(ticket, prefill))

    def _meeting(self, ticket: Ticket, prefill: WorkerRecord) -> dict[str, object]:
        assert prefill.transfer is not None
        host, _, port = prefill.transfer.bootstrap.rpartition(":")
        return {
            "bootstrap_host": host,
            "bootstrap_port": int(port),
            "bootstrap_room": _room(ticket),
        }


class _SimulatedBootstrap(_Bootstrap):
    """The simulated engine, which has both orders behind vLLM's field."""

    def prefill(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord) -> Leg:
        wanted = {"do_remote_decode": True, **self._meeting(ticket, prefill)}
        return _one_token(leg, kv_transfer_params=wanted)

    def decode(self, leg: Leg, ticket: Ticket, prefill: WorkerRecord, handle: bytes) -> Leg:
        del handle
        wanted = {"do_remote_prefill": True, **self._meeting(ticket, prefill)}
        return _with(leg, kv_transfer_params=wanted)


_DIALECTS: dict[tuple[str, HandoffOrder], Dialect] = {
    ("vllm", HandoffOrder.PREFILL_FIRST): _KvTransferParams(),
    ("sim", HandoffOrder.PREFILL_FIRST): _KvTransferParams(),
    ("sim", HandoffOrder.OVERLAPPED): _SimulatedBootstrap(),
    ("trtllm", HandoffOrder.PREFILL_FIRST): _OpaqueState(),
    ("sglang", HandoffOrder.OVERLAPPED): _Bootstrap(),
}


class _Choice(msgspec.Struct):
    disaggregated_params: Fields | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice]


def _room(ticket: Ticket) -> int:
    """A number that no other ticket has."""
    return int(ticket.id, 16) % (1 << ROOM_BITS)


def _fields(leg: Leg) -> Fields:
    return msgspec.json.decode(leg.body, type=Fields)


def _with(leg: Leg, **added: object) -> Leg:
    fields = _fields(leg) | {name: _raw(value) for name, value in added.items()}
    return replace(leg, body=msgspec.json.encode(fields))


def _one_token(leg: Leg, **added: object) -> Leg:
    """As much as a prompt needs to be computed, in one piece."""
    fields = _fields(leg)
    for name in ("max_completion_tokens", "min_tokens", "stream_options"):
        fields.pop(name, None)
    body = msgspec.json.encode(fields)
    return _with(replace(leg, body=body), max_tokens=1, stream=False, **added)


def _raw(value: object) -> msgspec.Raw:
    return value if isinstance(value, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(value))


def _found(answer: bytes, name: str) -> bytes:
    try:
        told = bytes(msgspec.json.decode(answer, type=Fields).get(name, b"null"))
    except NOT_AS_EXPECTED as error:
        raise NoHandle(str(error)) from error
    if told == b"null":
        raise NoHandle(f"no {name} in its answer")
    return told
