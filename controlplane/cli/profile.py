"""`tokenplane profile`: measure an idle engine over HTTP, and write what a planner begins with.

Prompts of several lengths are sent one at a time, then several answers are asked for at once. Send
it to an engine that serves nobody else. Prompts are fresh each time, so that nothing is found in a
cache.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console

from controlplane.capacity import WorkerClass
from controlplane.cli.options import OutPath
from controlplane.cli.run import run_interactive
from controlplane.planner.profile import AnswerSample, PromptSample, fit
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommandSettings
from proto.wire.errors import HttpError
from proto.wire.http import HttpClient
from proto.wire.ports import Http, HttpTimeouts

PATIENCE = HttpTimeouts(connect_s=5.0, first_byte_s=300.0, idle_s=60.0)
DATA = b"data: "
LEAST_TOKEN, MOST_TOKEN = 1_000, 31_999


def _url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url.rstrip("/")


class ProfileSettings(CommandSettings):
    """Measure an idle engine and write a capacity profile for planners."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    url: Annotated[str, AfterValidator(_url)] = Field(description="the engine, not a gateway")
    model: str = Field(description="the model's name, as workers register it")
    out: OutPath = Field(Path("profile.json"), description="write the profile here")
    hardware: str = Field("unknown", description="hardware profile, as workers register it")
    accelerators: int = Field(1, ge=0, description="accelerators, as workers register them")
    engine: str = Field("vllm", description="the engine's name, as workers register it")
    engine_version: str | None = Field(None, description="if not what the engine says of itself")
    precision: str = Field("", description="precision, as workers register it")
    max_batched_tokens: int = Field(2_048, ge=1, description="prompt tokens of a step, at most")
    longest: int = Field(8_192, ge=64, description="longest prompt that is measured, in tokens")
    batch: int = Field(32, ge=2, description="most answers at once")
    tokens: int = Field(64, ge=8, description="tokens of each answer")
    seed: int = Field(0, ge=0, description="of the prompts")
    as_json: bool = Field(False, alias="json", description="print the profile as JSON")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive("tokenplane profile", ProfileSettings, profile, argv)


async def profile(settings: ProfileSettings) -> None:
    """Measure, fit, write. Raises `CannotServe` if the engine cannot be measured."""
    sweep = _Sweep(settings)
    async with HttpClient() as http:
        try:
            version = settings.engine_version
            if version is None:
                version = await _version(http, settings.url)
            prompts = [await sweep.prompt(http, tokens) for tokens in sweep.lengths()]
            answers = [
                await sweep.answers(http, batch, context)
                for context in (256, min(2_048, settings.longest))
                for batch in sweep.batches()
            ]
        except HttpError as error:
            raise CannotServe(
                f"the engine at {settings.url} cannot be measured: {error}"
            ) from error
    worker_class = WorkerClass(
        settings.hardware,
        settings.accelerators,
        settings.engine,
        version,
        settings.model,
        settings.precision,
    )
    found = fit(worker_class, prompts, answers, settings.max_batched_tokens)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    settings.out.write_bytes(text + b"\n")
    if settings.as_json:
        sys.stdout.write(f"{text.decode()}\n")
        return
    curve = found.curve
    Console().print(
        f"a step {curve.decode_base_ms:.2f} ms, a prompt token {curve.prefill_token_ms:.4f} ms,"
        f" a sequence {curve.decode_request_ms:.3f} ms, a thousand tokens of context"
        f" {curve.decode_kv_token_ms * 1000:.3f} ms; written to {settings.out}"
    )


class _Sweep:
    """The requests of one profile."""

    def __init__(self, settings: ProfileSettings) -> None:
        self._settings = settings
        self._rng = random.Random(settings.seed)

    def lengths(self) -> list[int]:
        """Of prompts: doubling, up to the longest."""
        lengths, length = [], 64
        while length < self._settings.longest:
            lengths.append(length)
            length *= 2
        return [*lengths, self._settings.longest]

    def batches(self) -> list[int]:
        """Of answers: doubling, up to the most."""
        batches, batch = [], 1
        while batch < self._settings.batch:
            batches.append(batch)
            batch *= 2
        return [*batches, self._settings.batch]

    async def prompt(self, http: Http, tokens: int) -> PromptSample:
        times = await self._ask(http, tokens, 1)
        return PromptSample(tokens, times[0] * 1000)

    async def answers(self, http: Http, batch: int, context: int) -> AnswerSample:
        """The gaps between tokens once all of them are being written."""
        count = self._settings.tokens
        every: list[list[float]] = []

        async def one() -> None:
            began_s = anyio.current_time()
            every.append([began_s + s for s in await self._ask(http, context, count)])

        async with anyio.create_task_group() as tasks:
            for _ in range(batch):
                tasks.start_soon(one)
        all_begun = max(times[0] for times in every)
        spans = [[t for t in times if t >= all_begun] for times in every]
        gaps = [(t[-1] - t[0]) / (len(t) - 1) for t in spans if len(t) > 1]
        if not gaps:
            raise CannotServe("no two answers were written at the same time; raise --tokens")
        return AnswerSample(batch, context + count // 2, count, sum(gaps) / len(gaps) * 1000)

    async def _ask(self, http: Http, prompt_tokens: int, tokens: int) -> list[float]:
        """When each piece of the answer came, in seconds from now."""
        prompt = [self._rng.randint(LEAST_TOKEN, MOST_TOKEN) for _ in range(prompt_tokens)]
        body = {
            "model": self._settings.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "ignore_eos": True,
        }
        began_s, times = anyio.current_time(), []
        async with http.exchange(
            "POST",
            f"{self._settings.url}/v1/completions",
            body=msgspec.json.encode(body),
            headers={"content-type": "application/json"},
            timeouts=PATIENCE,
        ) as answer:
            if answer.status != 200:
                text = (await answer.read()).decode(errors="replace")[:200]
                raise CannotServe(f"the engine answered with {answer.status}: {text}")
            async for piece in answer.chunks():
                pieces = piece.count(DATA) - piece.count(DATA + b"[DONE]")
                times += [anyio.current_time() - began_s] * max(0, pieces)
        if not times:
            raise CannotServe("the engine answered with no token")
        return times


async def _version(http: Http, url: str) -> str:
    async with http.exchange("GET", f"{url}/version") as answer:
        if answer.status != 200:
            return ""
        try:
            return str(msgspec.json.decode(await answer.read(), type=dict[str, object])["version"])
        except (msgspec.DecodeError, KeyError):
            return ""
