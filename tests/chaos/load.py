"""Streams with known answers, all the time: whatever happens, no wrong token may come out.

A simulated engine's answer is a function of its prompt, so what a prompt must be answered is asked
once, undisturbed, and compared with ever after. Every stream comes to one `Verdict`.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import anyio

from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpResponse, HttpTimeouts

TIMEOUTS = HttpTimeouts(connect_s=5.0, first_byte_s=60.0, idle_s=60.0)
RETRY_S = 0.1
BODY_BYTES_MAX = 1 << 20


class Verdict(StrEnum):
    """What a stream came to."""

    WHOLE = "whole"
    """The known answer, and a proper end."""
    REFUSED = "refused"
    """A typed error instead of an answer."""
    ENDED = "ended"
    """A part of the known answer, then one typed error event and nothing after it."""
    CUT = "cut"
    """A part of the known answer, then the connection went. Only a gateway's death excuses it."""
    UNREACHABLE = "unreachable"
    """Nobody took the connection. Only a gateway's death excuses it."""
    WRONG = "wrong"
    """Any other: a token that is not in the answer, an end that looks whole and is not."""


@dataclass(frozen=True)
class Ended:
    """One stream's end."""

    at_s: float
    began_s: float
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Question:
    """A prompt of which the answer is known."""

    prompt: str
    answer: str


@dataclass
class _Heard:
    """What a stream has said so far."""

    text: str = ""
    finish: str | None = None
    error: str | None = None
    done: bool = False
    after_the_end: bool = False

    def take(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        self.after_the_end |= self.done or self.error is not None
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
            return
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            self.error = str(event["error"]["code"])
        for choice in event.get("choices", ()):
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish

    def verdict(self, answer: str, *, broke_off: bool) -> tuple[Verdict, str]:
        """What it comes to, beside the answer that it should have been."""
        if self.after_the_end or not answer.startswith(self.text):
            return Verdict.WRONG, f"{self.text!r} for {answer!r}"
        if self.done:
            whole = self.error is None and self.text == answer and self.finish == "length"
            said = f"{len(self.text)} of {len(answer)} characters, {self.finish}, {self.error}"
            return (Verdict.WHOLE, "") if whole else (Verdict.WRONG, f"[DONE] after {said}")
        if self.error is not None:
            return Verdict.ENDED, self.error
        return (Verdict.CUT, "") if broke_off else (Verdict.WRONG, "it ended and did not say how")


@dataclass
class Load:
    """`clients` that ask one question after the other until they are stopped."""

    http: Http
    url: str
    model: str
    questions: Sequence[Question]
    rng: random.Random
    clients: int = 8
    output_tokens: int = 32
    pause_s: float = 0.0
    """How long a client thinks between two questions, on average."""
    ended: list[Ended] = field(default_factory=list)
    _news: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            for _ in range(self.clients):
                tasks.start_soon(self._client)

    def note(self, began_s: float, verdict: Verdict, detail: str) -> None:
        """A stream has ended now."""
        self.ended.append(Ended(time.monotonic(), began_s, verdict, detail))
        self._news.set()
        self._news = anyio.Event()

    async def next_end(self) -> None:
        """Until another stream has ended."""
        await self._news.wait()

    def since(self, began_s: float) -> list[Ended]:
        """Streams that ended after that moment."""
        return [each for each in self.ended if each.at_s >= began_s]

    def count(self, began_s: float = 0.0) -> Counter[Verdict]:
        """How many came to what."""
        return Counter(each.verdict for each in self.since(began_s))

    async def _client(self) -> None:
        while True:
            began_s = time.monotonic()
            question = self.rng.choice(self.questions)
            verdict, detail = await ask(self, question)
            self.note(began_s, verdict, detail)
            if verdict is Verdict.WHOLE:
                await anyio.sleep(self.rng.uniform(0, 2 * self.pause_s))
            else:
                await anyio.sleep(RETRY_S)


async def ask(load: Load, question: Question) -> tuple[Verdict, str]:
    """One stream, and what it comes to."""
    exchange = load.http.exchange(
        "POST",
        f"{load.url}/v1/completions",
        body=_body(load, question.prompt, stream=True),
        headers={"content-type": "application/json"},
        timeouts=TIMEOUTS,
    )
    heard, answered = _Heard(), False
    try:
        async with exchange as response:
            answered = True
            if response.status != 200:
                return await _refused(response)
            pending = b""
            async for chunk in response.chunks():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    heard.take(line)
    except HttpError as error:
        if not answered:
            return Verdict.UNREACHABLE, str(error)
        return heard.verdict(question.answer, broke_off=True)
    return heard.verdict(question.answer, broke_off=False)


async def questions(load: Load, prompts: Sequence[str]) -> list[Question]:
    """Ask each prompt once, undisturbed, and take down the answer."""
    found = []
    for prompt in prompts:
        async with load.http.exchange(
            "POST",
            f"{load.url}/v1/completions",
            body=_body(load, prompt, stream=False),
            headers={"content-type": "application/json"},
            timeouts=TIMEOUTS,
        ) as response:
            answer = json.loads(await response.read(limit_bytes=BODY_BYTES_MAX))
            found.append(Question(prompt, answer["choices"][0]["text"]))
    return found


async def predicted_and_actual(load: Load, question: Question) -> tuple[int, int]:
    """Prompt tokens that the router believes to be in the chosen engine's cache, and that are."""
    async with load.http.exchange(
        "POST",
        f"{load.url}/v1/completions",
        body=_body(load, question.prompt, stream=False),
        headers={"content-type": "application/json"},
        timeouts=TIMEOUTS,
    ) as response:
        body = json.loads(await response.read(limit_bytes=BODY_BYTES_MAX))
        predicted = int(response.headers["x-tokenplane-overlap-tokens"])
        return predicted, int(body["usage"]["prompt_tokens_details"]["cached_tokens"])


def _body(load: Load, prompt: str, *, stream: bool) -> bytes:
    return json.dumps(
        {
            "model": load.model,
            "prompt": prompt,
            "max_tokens": load.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
    ).encode()


async def _refused(response: HttpResponse) -> tuple[Verdict, str]:
    body = await response.read(limit_bytes=BODY_BYTES_MAX)
    try:
        return Verdict.REFUSED, str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return Verdict.WRONG, f"HTTP {response.status} without a typed error"
