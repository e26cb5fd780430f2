"""Fits the step costs of `timing.py` to measured prompt and token times.

    python -m workers.sim.fit engine_timings_splitwise.csv.gz [hardware.toml]

With a file of chips, also how far the A100 is from the H100 scaled by `roofline.py`, for the model
that its rule was chosen on and for one that it was not.

Columns used: model, hardware, tensor_parallel, prompt_size and token_size (tokens), batch_size,
prompt_time (ms for the whole batch), token_time (ms a decode step). Needs numpy; the engine does
not.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.sim.chips import BadChips, Chip, read_chips
from workers.sim.roofline import scaled
from workers.sim.timing import StepCost

Floats = NDArray[np.float64]

KNEE_TOKENS = 2048
"""Where the measured prompt passes bend; 1,024 to 3,072 were tried."""

FLOOR_TOKENS = 256
"""Up to here a prompt pass takes the same time, whatever its size."""

LLAMA2_70B_PAIR_PER_TOKEN = (4 * 80 * 8192) / (2 * 69e9)
"""Operations of an attention pair by operations of the weights on a token (see `timing.py`)."""


@dataclass(frozen=True)
class Measurements:
    """Columns of the rows of one model, hardware and tensor parallelism."""

    prompt_tokens: Floats
    batch: Floats
    output_tokens: Floats
    prompt_ms: Floats
    decode_ms: Floats


@dataclass(frozen=True)
class Error:
    """Relative error of a fit over its rows."""

    median: float
    p95: float


def load(path: Path, model: str, hardware: str, tensor_parallel: int) -> Measurements:
    """The rows that match; raises OSError, KeyError and ValueError for what is no such file."""
    wanted = (model, hardware, str(tensor_parallel))
    rows = [
        row
        for row in _rows(path)
        if (row["model"], row["hardware"], row["tensor_parallel"]) == wanted
    ]
    if not rows:
        raise ValueError(f"{path} has no rows of {model} on {hardware} with TP {tensor_parallel}")

    def column(name: str) -> Floats:
        return np.array([float(row[name]) for row in rows])

    return Measurements(
        column("prompt_size"),
        column("batch_size"),
        column("token_size"),
        column("prompt_time"),
        column("token_time"),
    )


def fit(data: Measurements) -> tuple[StepCost, Error, Error]:
    """Least squares of relative errors; returns the cost and the errors of prefill and decode."""
    tokens, pairs = _prefill_work(data)
    at_floor = tokens <= FLOOR_TOKENS
    floor_ms = float(np.median(data.prompt_ms[at_floor]))
    weighted_tokens = tokens + LLAMA2_70B_PAIR_PER_TOKEN * pairs
    above_knee = np.maximum(0.0, tokens - KNEE_TOKENS)
    terms = np.column_stack([np.ones_like(tokens), weighted_tokens, above_knee])[~at_floor]
    base_ms, token_ms, knee_ms = _relative_least_squares(terms, data.prompt_ms[~at_floor])

    kv_tokens = _mean_kv_tokens(data)
    terms = np.column_stack([np.ones_like(kv_tokens), data.batch, kv_tokens])
    decode_base_ms, sequence_ms, kv_token_ms = _relative_least_squares(terms, data.decode_ms)

    cost = StepCost(
        decode_base_ms=decode_base_ms,
        decode_sequence_ms=sequence_ms,
        decode_kv_token_ms=kv_token_ms,
        prefill_floor_ms=floor_ms,
        prefill_base_ms=base_ms,
        prefill_token_ms=token_ms,
        prefill_knee_token_ms=knee_ms,
        attention_pair_ms=LLAMA2_70B_PAIR_PER_TOKEN * token_ms,
        prefill_knee_tokens=KNEE_TOKENS,
    )
    return cost, *errors(cost, data)


def errors(cost: StepCost, data: Measurements) -> tuple[Error, Error]:
    """How far `cost` is from the measured prompt passes and decode steps."""
    work = zip(*_prefill_work(data), strict=True)
    prefill = np.array([cost.step_ms(int(tokens), pairs, 0, 0) for tokens, pairs in work])
    steps = zip(data.batch, _mean_kv_tokens(data), strict=True)
    decode = np.array([cost.step_ms(0, 0, int(batch), int(kv)) for batch, kv in steps])
    return _error(prefill, data.prompt_ms), _error(decode, data.decode_ms)


def main(arguments: list[str]) -> int:
    """Print the coefficients of the profiles; returns the exit code."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m workers.sim.fit MEASUREMENTS.csv[.gz] [CHIPS.toml]\n")
        return 2
    path, *chips = map(Path, arguments)
    try:
        lines = [*_fitted(path), *(_predicted(path, read_chips(chips)) if chips else ())]
    except (OSError, KeyError, ValueError, BadChips) as error:
        sys.stderr.write(f"cannot fit {path}: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _fitted(path: Path) -> Iterator[str]:
    for hardware in ("h100-80gb", "a100-80gb"):
        data = load(path, "llama2-70b", hardware, 8)
        cost, *found = fit(data)
        yield f"{hardware}, {len(data.batch)} rows"
        yield from (f"  {name} = {value:.4g}" for name, value in vars(cost).items())
        yield from _told(found)


def _predicted(path: Path, chips: Mapping[str, Chip]) -> Iterator[str]:
    for model in ("llama2-70b", "bloom-176b"):
        measured = [load(path, model, hardware, 8) for hardware in ("h100-80gb", "a100-80gb")]
        cost, *_ = fit(measured[0])
        yield f"a100-80gb as predicted from h100-80gb, {model}"
        yield from _told(errors(scaled(cost, chips["h100"], chips["a100"]), measured[1]))


def _told(found: Iterable[Error]) -> Iterator[str]:
    for what, error in zip(("prompt pass", "decode step"), found, strict=True):
        yield f"  relative error of the {what}: median {error.median:.1%}, p95 {error.p95:.1%}"


def _rows(path: Path) -> Iterator[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def _prefill_work(data: Measurements) -> tuple[Floats, Floats]:
    """Prompt tokens and attention pairs of each row's whole batch."""
    prompt = data.prompt_tokens
    return data.batch * prompt, data.batch * prompt * (prompt + 1) / 2


def _mean_kv_tokens(data: Measurements) -> Floats:
    """KV tokens of the batch half-way through the answers: `token_time` is a mean over them."""
    return data.batch * (data.prompt_tokens + data.output_tokens / 2)


def _relative_least_squares(terms: Floats, measured: Floats) -> tuple[float, ...]:
    """Weights of the columns of `terms` with the least sum of squared relative errors."""
    relative = terms / measured[:, np.newaxis]
    solution, *_ = np.linalg.lstsq(relative, np.ones_like(measured), rcond=None)
    return tuple(float(weight) for weight in solution)


def _error(predicted: Floats, measured: Floats) -> Error:
    relative = np.abs(predicted - measured) / measured
    return Error(float(np.median(relative)), float(np.percentile(relative, 95)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
