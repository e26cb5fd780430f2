"""Bodies of clients, registry records, traces, settings: what is wrong is said in a typed error."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from controlplane.gateway.openai import Api, ClientError, read
from controlplane.registry.membership import Membership
from controlplane.replay.trace import TraceUnreadable, load_trace
from controlplane.router.settings import RouterSettings
from controlplane.runtime.settings import CommonSettings, load
from controlplane.runtime.sources import SettingsError
from proto.ids import WorkerId
from proto.subjects import Keys
from tests.fuzz.mutate import JSON_EXTREMES, changed_bytes, changed_value
from tests.schedules.network import demand
from tests.support.router_core import record

CHAT = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ],
    "max_tokens": 5,
    "stream": True,
    "n": 1,
    "tools": [{"type": "function", "function": {"name": "f"}}],
}
BODIES: dict[Api, Any] = {
    Api.CHAT: CHAT,
    Api.COMPLETIONS: {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "stream": False},
    Api.RESPONSES: {"model": "m", "input": [{"role": "user", "content": "x"}], "stream": True},
    Api.EMBEDDINGS: {"model": "m", "input": ["a", "b"]},
}
KEYS = Keys("fuzz")
RECORD = record(WorkerId("w"))
LINE = {"timestamp": 5.0, "input_length": 900, "output_length": 20, "hash_ids": [1, 2]}


class Config(CommonSettings):
    """Settings of a process, with those of a router."""

    router: RouterSettings = RouterSettings()


def bodies(rng: random.Random, trace: list[str] | None = None) -> None:
    """A client's body: an `Ask`, or `ClientError` with a body of its own."""
    api = rng.choice(list(BODIES))
    body = _changed_json(rng, BODIES[api], trace)
    try:
        read(api, body)
    except ClientError as error:
        demand(400 <= error.status < 500, "a client's fault, and yet", error.status)
        msgspec.json.decode(error.body())


def records(rng: random.Random, trace: list[str] | None = None) -> None:
    """What stands in the registry: a bad record is named and left out, and good ones count."""
    membership = Membership(KEYS)
    good = RECORD.model_dump_json().encode()
    membership.put(KEYS.worker(RECORD.worker), good)
    for _ in range(rng.randrange(1, 6)):
        worker = rng.choice(("w", "v", "x.y", "", "ü"))
        key = rng.choice((KEYS.workers, KEYS.models, "/tp/other/")) + worker
        membership.put(key, _changed_json(rng, msgspec.json.decode(good), trace))
    membership.put(KEYS.worker(RECORD.worker), good)
    demand(membership.workers[RECORD.worker] == RECORD, "the good record is not there")


def traces(rng: random.Random, trace: list[str] | None = None) -> None:
    """A trace's file: bad lines are dropped and counted, or the file refused."""
    lines = [msgspec.json.encode(LINE) for _ in range(3)]
    lines += [_changed_json(rng, LINE, trace) for _ in range(rng.randrange(1, 6))]
    rng.shuffle(lines)
    handle, name = tempfile.mkstemp(suffix=rng.choice((".jsonl", ".jsonl", ".jsonl.gz")))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b"\n".join(lines))
        load_trace(Path(name), context_tokens=4_096)
    except TraceUnreadable:
        pass
    finally:
        os.unlink(name)


def settings(rng: random.Random, trace: list[str] | None = None) -> None:
    """Flags and a file of settings: settings, or `SettingsError`."""
    argv = []
    for _ in range(rng.randrange(1, 4)):
        flag = rng.choice(("--cluster", "--router.policy", "--nats.servers", "--router.coming_s"))
        argv += [flag, str(rng.choice(JSON_EXTREMES))]
    given = {"cluster": "c", "router": {"policy": "kv", "waiting_max": 3}, "admin": {"port": 1}}
    handle, name = tempfile.mkstemp(suffix=".toml")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(changed_bytes(rng, _toml(given), [b"[a]\nb = 1\n", b"\xff"]))
        if rng.random() < 0.5:
            argv += ["--config", name]
        if trace is not None:
            trace += [repr(argv), Path(name).read_bytes().hex()]
        load(Config, argv)
    except SettingsError:
        pass
    except SystemExit as exit_:
        demand(exit_.code in (0, 2), "settings ended the process with", exit_.code)
    finally:
        os.unlink(name)


def _changed_json(rng: random.Random, good: Any, trace: list[str] | None) -> bytes:
    data = msgspec.json.encode(good)
    if rng.random() < 0.5:
        data = changed_bytes(rng, data, [data, b'{"a":[1e999,"\\ud800"]}'])
    else:
        data = msgspec.json.encode(changed_value(rng, good, JSON_EXTREMES))
    if trace is not None:
        trace.append(data.hex())
    return data


def _toml(given: dict[str, Any]) -> bytes:
    top = [f'{key} = "{value}"' for key, value in given.items() if not isinstance(value, dict)]
    for group, values in given.items():
        if isinstance(values, dict):
            top.append(f"[{group}]")
            top += [
                f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values.items()
            ]
    return "\n".join(top).encode()
