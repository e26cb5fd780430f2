"""What must be nowhere: prompts, answers, tokens, KV bytes and keys on the bus, in the store, in
logs. A whole cluster serves requests while somebody listens to every subject there is."""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import httpx2 as httpx
import msgspec
import pytest
from tokenizers import Tokenizer

from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.nats import NatsBus, NatsSettings
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("secrecy"),
]

KEY = f"tp-{secrets.token_urlsafe(16)}"
RUN_TOKENS = 6
"""So many tokens in a row are no coincidence."""
ENOUGH_MESSAGES = 20


def _prompt() -> str:
    return "Keep this to yourself: " + " ".join(secrets.token_hex(4) for _ in range(30))


def _spellings(tokens: list[int]) -> Iterator[bytes]:
    """A run of token ids as somebody might carelessly write it."""
    run = tokens[2 : 2 + RUN_TOKENS]
    yield msgspec.msgpack.encode(run)[1:]
    yield msgspec.json.encode(run)[1:-1]
    yield json.dumps(run)[1:-1].encode()
    for width in "HIQ":
        yield struct.pack(f"<{RUN_TOKENS}{width}", *run)
        yield struct.pack(f">{RUN_TOKENS}{width}", *run)


def _ask(cluster: UpCluster, prompt: str, *, stream: bool) -> str:
    """The whole text of an answer."""
    body = {"model": cluster.model, "prompt": prompt, "max_tokens": 12, "stream": stream}
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    if not stream:
        return str(answer.json()["choices"][0]["text"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1] if '"text"' in e)


async def _said_meanwhile(
    cluster: UpCluster, work: list[tuple[str, bool]]
) -> tuple[bytes, list[str]]:
    """All that NATS carries and etcd holds while requests are served, and the answers."""
    heard: list[bytes] = []
    answers: list[str] = []
    recorded = anyio.Semaphore(0)

    async def listen() -> None:
        async for message in messages:
            headers = " ".join(f"{k}={v}" for k, v in message.headers.items())
            heard.append(message.subject.encode() + headers.encode() + message.data)
            if message.subject.endswith(".requests"):
                recorded.release()

    bus = NatsBus(NatsSettings(servers=(cluster.state["nats"],)))
    async with bus, bus.subscribe(">") as messages, anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        for prompt, stream in work:
            ask = partial(_ask, cluster, prompt, stream=stream)
            answers.append(await anyio.to_thread.run_sync(ask))
        with anyio.fail_after(30):
            for _ in work:
                await recorded.acquire()
        tasks.cancel_scope.cancel()
    assert len(heard) > ENOUGH_MESSAGES
    async with EtcdStore(EtcdSettings(endpoints=(cluster.state["etcd"],))) as store:
        heard += [entry.key.encode() + entry.value for entry in await store.list("/")]
    return b"\n".join(heard), answers


def test_nothing_that_must_stay_private_is_on_the_bus_in_the_store_or_in_logs(
    tmp_path: Path,
) -> None:
    prompts = [_prompt() for _ in range(3)]
    work = [(prompts[0], False), (prompts[0], True), (prompts[1], True), (prompts[2], False)]
    with up(tmp_path, "--engines", "2", "--speed", "10") as cluster:
        everything, answers = anyio.run(_said_meanwhile, cluster, work)
        folder = tmp_path / "clusters" / "test"
        tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        logs = b"".join(path.read_bytes() for path in folder.glob("logs/*.log"))
        secret = (folder / "secret").read_bytes().strip()
    assert all(answers)
    for text in (*prompts, *answers):
        tokens: list[int] = tokenizer.encode(text).ids
        assert len(tokens) > RUN_TOKENS + 2
        for where, said in (("the bus or the store", everything), ("a log", logs)):
            for spelling in (text.encode(), text.encode()[8:40], *_spellings(tokens)):
                assert spelling not in said, f"{spelling!r} is in {where}"
    for where, said in (("the bus or the store", everything), ("a log", logs)):
        assert KEY.encode() not in said, f"the API key is in {where}"
        assert secret not in said, f"the cluster secret is in {where}"
