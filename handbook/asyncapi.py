"""docs/api/asyncapi.json: what is said on the bus, by subject, from the types that are sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel

from proto import (
    decisions,
    draining,
    kv,
    live,
    load,
    progress,
    records,
    route,
    scaling,
    transfers,
    workers,
)
from proto.codec import SCHEMA_MAJOR
from proto.ids import RequestId, ServiceId, WorkerId
from proto.subjects import Subjects

WORDS = {
    "cluster": "CLUSTER", "worker": "WORKER", "router": "ROUTER", "request": "REQUEST",
    "service": "SERVICE", "verb": "VERB",
}  # fmt: skip
"""Parameters of addresses, and what stands for them where a subject is built."""

PARAMETERS = {
    "cluster": "Name of the cluster",
    "worker": "A worker's id",
    "router": "A router process's id",
    "request": "A request's id",
    "service": "A process's id",
    "verb": "What is to be done",
}

Type = Any


class Channel(NamedTuple):
    """One kind of subject."""

    name: str
    subject: str
    says: Sequence[Type]
    by: str
    to: str
    about: str
    answers: Sequence[Type] = ()
    """Types of the reply, where it is a question."""


def channels(s: Subjects) -> list[Channel]:
    """All of them."""
    worker, router = WorkerId(WORDS["worker"]), ServiceId(WORDS["router"])
    request, service, verb = RequestId(WORDS["request"]), WORDS["service"], WORDS["verb"]
    told = [live.SettingsTold]
    return [
        Channel("kv", s.kv(worker), [kv.KvBatch], "agent", "routers",
                "Numbered changes of a worker's KV cache; a gap is healed by a snapshot"),
        Channel("load", s.load(worker), [load.LoadReport], "agent", "everyone",
                "What a worker is busy with, some times a second"),
        Channel("route", s.route, [route.RouteRequest], "gateway", "one router",
                "Where should this prompt go?", [route.Chosen, route.Queued, route.Rejected]),
        Channel("progress", s.progress(worker), [progress.Progress], "gateway", "routers, agent",
                "How far a request has come"),
        Channel("ledger", s.ledger(router), [progress.Bookings], "router", "routers",
                "What a router has just booked"),
        Channel("withdrawn", s.withdrawn, [progress.Withdrawn], "gateway", "routers",
                "An attempt needs no worker any more"),
        Channel("bookings", s.bookings, [progress.BookingsRequest], "new router", "one router",
                "What is booked already?", [progress.Bookings]),
        Channel("decisions", s.decisions, [decisions.Decision], "router", "everyone",
                "A sample of the decisions, with all candidates"),
        Channel("explain", s.explain, [decisions.ExplainRequest], "anyone", "routers",
                "Who remembers this request? Answered on `explained`"),
        Channel("explained", s.explained(request), [decisions.Explained], "router", "who asked",
                "What one router decided for a request"),
        Channel("snapshot", s.snapshot(worker), [kv.KvSnapshotRequest], "router", "one agent",
                "The whole of a worker's cache, chunk by chunk", [kv.KvSnapshotChunk]),
        Channel("drain", s.agent(worker, "drain"), [draining.DrainRequest], "operator", "one agent",
                "Take nothing new, or serve again", [draining.DrainReply]),
        Channel("command", s.agent(worker, verb), [transfers.Command], "coordinator", "one agent",
                "Have the engine abort, release, offer or replicate KV blocks", [transfers.CommandReply]),
        Channel("transfer", s.transfer(verb),
                [transfers.Begin, transfers.Report, transfers.Move, transfers.Evacuate],
                "gateway, router or agent",
                "one coordinator", "May this be prefilled elsewhere (`begin`); how far it has come"
                " (`report`); have a cached prefix moved (`move`), or what a leaving worker has"
                " (`evacuate`); which movements there are (`list`)",
                [transfers.Granted, transfers.Local, transfers.Stepped, transfers.Denied,
                 transfers.Moved, transfers.Stays, transfers.Evacuated]),
        Channel("transitions", s.transitions, [transfers.Transition], "coordinator", "everyone",
                "A movement of KV blocks has changed its state"),
        Channel("settings", s.settings, [live.SettingsQuestion], "anyone", "every process",
                "Which live settings are on? Answered on `settings_told`"),
        Channel("settings_told", s.settings_of(service), told, "process", "who asked",
                "One process's live settings"),
        Channel("settings_get", s.settings_asked(service), [live.SettingsQuestion], "anyone",
                "one process", "The same of one process", told),
        Channel("registry_workers", s.registry_workers, [workers.WorkersRequest], "anyone",
                "one registry", "Who is there? JSON both ways", [workers.WorkersReply]),
        Channel("plan", s.plan, [scaling.PlanTick], "planner", "stream",
                "Everything a planner thought at one tick; kept by JetStream"),
        Channel("requests", s.requests, [records.RequestRecord], "gateway", "stream",
                "One record a request that has ended; kept by JetStream, comes at least once"),
    ]  # fmt: skip


def page() -> str:
    """The whole document."""
    made = channels(Subjects(WORDS["cluster"]))
    schemas = _schemas([each for channel in made for each in (*channel.says, *channel.answers)])
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tokenplane's bus",
            "version": f"{SCHEMA_MAJOR}.0.0",
            "description": DESCRIPTION,
        },
        "defaultContentType": "application/msgpack",
        "channels": {channel.name: _channel(channel) for channel in made},
        "operations": {channel.name: _operation(channel) for channel in made},
        "components": {
            "schemas": schemas,
            "messages": {t.__name__: _message(t) for t in _types(made)},
        },
    }
    return json.dumps(document, indent=1) + "\n"


DESCRIPTION = (
    "What services, agents and tools say to each other over NATS. Every payload but those of"
    " `registry_workers` is msgpack: an array [schema, producer, incarnation, sequence, time_s,"
    f" body], where schema is {SCHEMA_MAJOR}; the message's schema here is that of the body. Bytes are"
    " msgpack's, written as base64 in the schemas. Readers ignore what is appended. W3C trace"
    " context travels in headers. Written by `make docs` from the code."
)


def address(subject: str) -> str:
    """A subject with parameters in place of the words that stand for them."""
    names = {word: f"{{{name}}}" for name, word in WORDS.items()}
    return ".".join(names.get(token, token) for token in subject.split("."))


def _channel(channel: Channel) -> dict[str, Any]:
    where = address(channel.subject)
    used = [name for name in WORDS if f"{{{name}}}" in where]
    types = (*channel.says, *channel.answers)
    return {
        "address": where,
        "description": channel.about,
        "messages": {t.__name__: {"$ref": f"#/components/messages/{t.__name__}"} for t in types},
        "parameters": {name: {"description": PARAMETERS[name]} for name in used},
    }


def _operation(channel: Channel) -> dict[str, Any]:
    here = f"#/channels/{channel.name}"

    def refs(types: Sequence[Type]) -> list[dict[str, str]]:
        return [{"$ref": f"{here}/messages/{t.__name__}"} for t in types]

    said = {
        "action": "send",
        "channel": {"$ref": here},
        "summary": f"{channel.by} to {channel.to}",
        "messages": refs(channel.says),
    }
    if channel.answers:
        said["reply"] = {"channel": {"$ref": here}, "messages": refs(channel.answers)}
    return said


def _message(kind: Type) -> dict[str, Any]:
    json_body = issubclass(kind, BaseModel)
    return {
        "name": kind.__name__,
        "contentType": "application/json" if json_body else "application/msgpack",
        "summary": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    }


def _types(made: Sequence[Channel]) -> list[Type]:
    every = {t.__name__: t for channel in made for t in (*channel.says, *channel.answers)}
    return [every[name] for name in sorted(every)]


def _schemas(types: Sequence[Type]) -> Mapping[str, Any]:
    ours = [t for t in types if not issubclass(t, BaseModel)]
    _, schemas = msgspec.json.schema_components(ours, ref_template="#/components/schemas/{name}")
    for model in (t for t in types if issubclass(t, BaseModel)):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return dict(sorted(schemas.items()))
