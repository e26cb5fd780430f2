"""`tokenplane conformance`: does an engine do what the control plane supposes it does?"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Literal

import anyio
import msgspec
from pydantic import Field

from agents.adapters.protocol import EngineAway, EngineUnfit
from agents.conformance.suite import Finding, Verdict, examine
from agents.engines import make_adapter
from agents.settings import AgentSettings, Endpoint, Url
from controlplane.runtime.carriers import open_engines
from controlplane.runtime.process import EXIT_BAD_SETTINGS, EXIT_FAILED, EXIT_OK
from controlplane.runtime.settings import CommandSettings, SettingsError, load

PROG = "tokenplane conformance"
MARKS = {Verdict.PASSED: "yes    ", Verdict.FAILED: "NO     ", Verdict.SKIPPED: "skipped"}


class Conformance(CommandSettings):
    """Check an engine that has no other work: does it do what the control plane supposes it does?

    It is asked a few hundred short questions, and its cache is emptied if it allows that.
    """

    engine: Url = Field(description="where it answers HTTP, such as http://127.0.0.1:8000")
    kind: Literal["vllm", "sglang", "trtllm", "sim"] = Field(description="which engine it is")
    events: Endpoint | None = Field(
        None, description="its KV events, such as tcp://127.0.0.1:5557; SGLang tells by itself"
    )
    replay: Endpoint | None = Field(None, description="where it replays them")
    rank: int | None = Field(None, ge=0, description="the data-parallel rank that is meant")
    context_tokens: int | None = Field(
        None, ge=1, description="longest prompt and answer; only TensorRT-LLM does not tell it"
    )
    trust_version: bool = Field(
        False, description="follow KV events of a release that is not known"
    )
    as_json: bool = Field(False, alias="json", description="one JSON object a line")

    def agent(self) -> AgentSettings:
        """What this engine's agent would be told."""
        return AgentSettings.model_validate(
            {
                "worker": "conformance",
                "engine": self.kind,
                "engine_url": self.engine,
                "events": self.events,
                "replay": self.replay,
                "rank": self.rank,
                "context_tokens": self.context_tokens,
                "trust_version": self.trust_version,
            }
        )


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code: 0 if nothing has failed."""
    try:
        options = load(Conformance, argv, prog=PROG)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS
    try:
        failed = anyio.run(_run, options)
    except (EngineAway, EngineUnfit) as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return EXIT_FAILED
    return EXIT_FAILED if failed else EXIT_OK


async def _run(options: Conformance) -> int:
    """Prints each finding as it is made; returns how many have failed."""
    count = dict.fromkeys(Verdict, 0)
    async with open_engines() as (http, frames):
        adapter = make_adapter(options.agent(), http, frames)
        async for finding in examine(options.engine, http, adapter, random.Random()):
            count[finding.verdict] += 1
            _print(_json(finding) if options.as_json else _line(finding))
    if not options.as_json:
        _print("\n" + ", ".join(f"{number} {verdict}" for verdict, number in count.items()))
    return count[Verdict.FAILED]


def _json(finding: Finding) -> str:
    return msgspec.json.encode(finding).decode()


def _line(finding: Finding) -> str:
    detail = f"\n           {finding.detail}" if finding.detail else ""
    return f"{MARKS[finding.verdict]}    {finding.what}{detail}"


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
