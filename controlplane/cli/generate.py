"""`tokenplane generate OUT`: write a trace of made-up conversations (see replay/generate.py)."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from controlplane.replay.generate import Workload, generate, write
from controlplane.runtime.settings import CommandSettings, SettingsError, load

PROG = "tokenplane generate"


class GenerateSettings(CommandSettings):
    """Write a trace of conversations with shared prefixes; the same seed writes the same file."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    out: CliPositionalArg[Path] = Field(description="file to write: .jsonl or .jsonl.gz")
    seed: int = Field(0, ge=0, description="of everything random")
    as_json: bool = Field(False, alias="json", description="say what was written as JSON")
    conversations: int = Field(Workload.conversations, ge=1, description="how many")
    rate: float = Field(Workload.rate, gt=0, description="conversations begun a second (Poisson)")
    turns: float = Field(Workload.turns, ge=1, description="mean turns of one (geometric)")
    think_s: float = Field(
        Workload.think_s, ge=0, description="mean seconds from an answer to the next turn"
    )
    system_prompts: int = Field(
        Workload.system_prompts, ge=0, description="different system prompts (Zipf)"
    )
    system_blocks_min: int = Field(
        Workload.system_blocks_min, ge=1, description="smallest system prompt, 512-token blocks"
    )
    system_blocks_max: int = Field(
        Workload.system_blocks_max, ge=1, description="largest system prompt, 512-token blocks"
    )
    zipf: float = Field(Workload.zipf, ge=0, description="exponent; 0: all equally popular")
    siblings: int = Field(
        Workload.siblings, ge=1, description="conversations begun at once, with a new system prompt"
    )
    message_tokens: float = Field(
        Workload.message_tokens, gt=0, description="mean tokens of a user's message (log-normal)"
    )
    long_share: float = Field(
        Workload.long_share, ge=0, le=1, description="share of messages 32 times as long"
    )
    output_tokens: float = Field(
        Workload.output_tokens, gt=0, description="mean tokens of an answer (log-normal)"
    )
    documents_rate: float = Field(
        Workload.documents_rate, ge=0, description="long documents a second beside the talk"
    )
    document_tokens: int = Field(
        Workload.document_tokens, ge=1, description="tokens of one, give or take a fifth"
    )
    document_output_tokens: int = Field(
        Workload.document_output_tokens, ge=1, description="tokens that one is answered in"
    )
    sigma: float = Field(Workload.sigma, ge=0, description="spread of both log-normals")
    context_tokens: int = Field(
        Workload.context_tokens, ge=1, description="a conversation ends before it outgrows this"
    )

    def workload(self) -> Workload:
        """The knobs as the generator takes them; raises ValueError where they contradict."""
        knobs = self.model_dump(include=set(Workload.__dataclass_fields__))
        return Workload(**knobs)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(GenerateSettings, argv, prog=PROG)
        requests = generate(settings.workload(), random.Random(settings.seed))
        lines = write(requests, settings.out)
    except (SettingsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROG}: cannot write {settings.out}: {error.strerror}", file=sys.stderr)
        return 1
    if settings.as_json:
        print(json.dumps({"out": str(settings.out), "requests": lines}))
    else:
        print(f"{settings.out}: {lines:,} requests")
    return 0
