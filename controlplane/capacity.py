"""How fast each kind of worker is, learned from what its engines say of their steps. Pure.

A step runs the weights once over chunks of prompts and one token of every running sequence, so the
time that engines computed in an interval is about linear in what they did in it:

    busy_ms = base * steps + prefill_token * prefill_tokens
            + request * decode_batch + kv_token * decode_kv_tokens

(sums over the interval's steps, as `proto.load.StepSums` gives them). The four coefficients are
fitted per class of workers by least squares, each interval weighted by 1 / busy_ms**2 so that
relative errors count, with exponential forgetting, and none of them below zero: a negative one
would reward load. Non-negative least squares in four unknowns: Lawson and Hanson's conditions,
found by trying all subsets.

A class is what makes one worker like another: hardware, engine and its version, model, precision.
A new version is a new class, with everything to be learned (HW5).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from proto.load import StepSums
from proto.workers import WorkerRecord

Floats = NDArray[np.float64]

STEP_MS_MIN = 0.05
"""No engine runs its weights in less. As small times weigh most, one that is none would set a curve
for hours."""
SAMPLES_MIN = 16
"""Intervals with prompts, and intervals with decoding, before a curve is believed."""
REMEMBERED = 2_000.0
"""An interval's weight has fallen to 1/e after so many more: some minutes of a busy fleet."""
FIT_EVERY = 8
WARM_UP_S = 5.0
"""Of a worker's life: caches fill, kernels are compiled. Not learned from (AS12)."""
_UNKNOWNS = 4
_SUBSETS = [
    list(subset) for size in range(_UNKNOWNS, 0, -1) for subset in combinations(range(4), size)
]


class Curve(NamedTuple):
    """Coefficients of the formula above, in milliseconds."""

    decode_base_ms: float
    prefill_token_ms: float
    decode_request_ms: float
    decode_kv_token_ms: float


class WorkerClass(NamedTuple):
    """Workers alike in everything that sets their speed."""

    hardware: str
    accelerators: int
    engine: str
    engine_version: str
    model: str
    precision: str = ""


def class_of(record: WorkerRecord) -> WorkerClass:
    """The class of a worker."""
    hardware = record.hardware
    return WorkerClass(
        hardware.profile,
        hardware.accelerators,
        record.engine,
        record.engine_version,
        record.model,
        hardware.precision,
    )


class Kept(msgspec.Struct, frozen=True):
    """What a model is made of, to be stored."""

    products: list[list[float]]
    answers: list[float]
    prefills: int
    decodes: int


class CapacityModel:
    """One class's curve, as of all that was observed."""

    def __init__(self) -> None:
        self._products: Floats = np.zeros((_UNKNOWNS, _UNKNOWNS))
        self._answers: Floats = np.zeros(_UNKNOWNS)
        self._prefills = 0
        self._decodes = 0
        self._since_fit = 0
        self.curve: Curve | None = None
        """None until enough is known."""

    def observe(self, sums: StepSums) -> bool:
        """Learn from one interval of one worker; True if the curve is another now."""
        busy_ms = sums.prefill_ms + sums.decode_ms
        if not sums.steps or busy_ms < STEP_MS_MIN * sums.steps:
            return False
        did = _did(sums) / busy_ms
        kept = 1 - 1 / REMEMBERED
        self._products = kept * self._products + np.outer(did, did)
        self._answers = kept * self._answers + did
        self._prefills += sums.prefill_tokens > 0
        self._decodes += sums.decode_batch > 0
        self._since_fit += 1
        known = min(self._prefills, self._decodes) >= SAMPLES_MIN
        if not known or (self.curve is not None and self._since_fit < FIT_EVERY):
            return False
        self._fit()
        return True

    def kept(self) -> Kept:
        """All that is known, to go on from in another process."""
        return Kept(self._products.tolist(), self._answers.tolist(), self._prefills, self._decodes)

    def restore(self, kept: Kept) -> None:
        """Go on from there."""
        self._products = np.array(kept.products, dtype=float)
        self._answers = np.array(kept.answers, dtype=float)
        self._prefills, self._decodes = kept.prefills, kept.decodes
        if min(self._prefills, self._decodes) >= SAMPLES_MIN:
            self._fit()

    def _fit(self) -> None:
        self._since_fit = 0
        self.curve = Curve(*_fit(self._products, self._answers))


class Capacities:
    """The models of all classes; `version` grows whenever a curve changes."""

    def __init__(self) -> None:
        self._models: dict[WorkerClass, CapacityModel] = {}
        self.version = 0

    def observe(self, record: WorkerRecord, sums: StepSums) -> None:
        """Learn from what a worker's engine has done in an interval."""
        model = self._models.setdefault(class_of(record), CapacityModel())
        self.version += model.observe(sums)

    def curve(self, record: WorkerRecord) -> Curve | None:
        """What is known of the worker's class."""
        model = self._models.get(class_of(record))
        return None if model is None else model.curve

    def kept(self) -> dict[WorkerClass, Kept]:
        """All models, to be stored."""
        return {kind: model.kept() for kind, model in self._models.items()}

    def restore(self, kept: Mapping[WorkerClass, Kept]) -> None:
        """Go on from these, where nothing is known yet."""
        for kind, what in kept.items():
            if kind not in self._models:
                self._models[kind] = CapacityModel()
                self._models[kind].restore(what)
                self.version += 1


def _did(sums: StepSums) -> Floats:
    return np.array(
        (sums.steps, sums.prefill_tokens, sums.decode_batch, sums.decode_kv_tokens), dtype=float
    )


def _fit(products: Floats, answers: Floats) -> list[float]:
    """Minimise |X c - 1| for c >= 0, given X'X and X'1: the best of all subsets of unknowns whose
    solution is not negative."""
    scale = np.sqrt(np.maximum(np.diag(products), 1e-300))
    scaled, target = products / np.outer(scale, scale), answers / scale
    best, best_gain = np.zeros(_UNKNOWNS), 0.0
    for subset in _SUBSETS:
        part = scaled[np.ix_(subset, subset)] + 1e-9 * np.eye(len(subset))
        found = np.linalg.solve(part, target[subset])
        # The sum of squares falls by this much against predicting nothing.
        gain = float(found @ target[subset])
        if found.min() >= 0 and gain > best_gain:
            best, best_gain = np.zeros(_UNKNOWNS), gain
            best[subset] = found
    coefficients: list[float] = (best / scale).tolist()
    return coefficients
