"""What commands that replay a trace have in common: which, how fast, against which targets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

from controlplane.cli.options import OutPath, PlotPath
from controlplane.replay.fleet import MODEL
from controlplane.replay.names import PromptNamer, check_block_size
from controlplane.replay.report import Setting, Targets
from controlplane.replay.trace import Trace, TraceUnreadable, load_trace
from controlplane.runtime.process import EXIT_BAD_SETTINGS, EXIT_FAILED, EXIT_INTERRUPTED
from controlplane.runtime.settings import CommandSettings, SettingsError, load
from controlplane.runtime.version import VERSION
from proto.hashing import BlockHasher, Scope, Words

REASONS_SHOWN = 5

S = TypeVar("S", bound=CommandSettings)


class TraceSettings(CommandSettings):
    """A trace in Mooncake's format, and what is made of it."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    trace: CliPositionalArg[Path] = Field(description="trace file: .jsonl or .jsonl.gz")
    limit: int | None = Field(None, ge=1, description="replay the first N usable requests only")
    json_out: OutPath | None = Field(None, alias="json", description="write the figures here")
    plot: PlotPath | None = Field(None, description="draw the figures here (.png)")
    rate_scale: float = Field(1.0, gt=0, description="arrivals so many times as fast")
    max_model_len: int = Field(
        131_072,
        ge=2,
        description="context; prompts that fill it are dropped, answers that do not fit are cut",
    )
    block_size: Annotated[int, AfterValidator(check_block_size)] = Field(
        64, description="tokens in a KV block; must divide 512"
    )
    ttft_target_ms: float = Field(5_000.0, gt=0, description="goodput counts up to here")
    tpot_target_ms: float = Field(100.0, gt=0, description="goodput counts up to here")
    hardware_file: Path | None = Field(
        None, description="TOML with accelerators of your own (docs/hardware.md)"
    )

    @property
    def targets(self) -> Targets:
        """What users are promised."""
        return Targets(self.ttft_target_ms, self.tpot_target_ms)

    def load_trace(self) -> Trace:
        """Raises `TraceUnreadable`."""
        return load_trace(
            self.trace,
            limit=self.limit,
            context_tokens=self.max_model_len,
            rate_scale=self.rate_scale,
        )

    def names(self, trace: Trace) -> list[Words]:
        """Canonical names of each request's full blocks."""
        hasher = BlockHasher(b"replay", Scope(MODEL), self.block_size)
        return list(PromptNamer(hasher).names(trace.requests))

    def told(self, *names: str) -> dict[str, Setting]:
        """What had a say in the figures, and these settings, for the report."""
        of_trace = ("limit", "rate_scale", "max_model_len", "block_size", "ttft_target_ms")
        values = {n: getattr(self, n) for n in (*of_trace, "tpot_target_ms", *names)}
        values = {n: ",".join(v) if isinstance(v, tuple) else v for n, v in values.items()}
        values = {n: str(v) if isinstance(v, Path) else v for n, v in values.items()}
        return {**values, "version": VERSION}


def tell_losses(path: Path, trace: Trace, notes: Console) -> None:
    """What of the file is not replayed, with the first reasons."""
    for dropped in trace.dropped[:REASONS_SHOWN]:
        notes.print(f"{path}:{dropped.line}: {dropped.reason}; dropped", markup=False)
    dropped_lines = trace.malformed + trace.too_long
    if dropped_lines > REASONS_SHOWN:
        notes.print(f"... and {dropped_lines - REASONS_SHOWN:,} more")
    if dropped_lines or trace.outputs_cut:
        notes.print(
            f"{path}: {trace.malformed:,} malformed lines and {trace.too_long:,} prompts over the "
            f"context dropped, {trace.outputs_cut:,} answers cut to fit it",
            markup=False,
        )


def run_replay(
    prog: str,
    settings_type: type[S],
    command: Callable[[S], int],
    argv: Sequence[str],
    failures: tuple[type[Exception], ...] = (),
) -> int:
    """Load the settings and run `command(settings)`, which returns the exit code. What of a trace,
    of files and of `failures` goes wrong is told in one line."""
    try:
        settings = load(settings_type, argv, prog=prog)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    told: tuple[type[Exception], ...] = (TraceUnreadable, OSError, *failures)
    try:
        return command(settings)
    except told as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def write_json(path: Path | None, report: msgspec.Struct) -> None:
    """Everything, for programs; nothing without a path. Raises OSError."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
