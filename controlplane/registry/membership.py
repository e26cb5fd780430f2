"""Who is there: the store's entries as records, and what each write changed. A pure core.

What is known is a function of what the store holds now, never of what it held before, so that
every replica agrees whenever it started. Hence a value that cannot be read counts as absent: a
worker whose record goes bad leaves, and comes back with the next good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import ValidationError

from proto.ids import BadName, WorkerId
from proto.subjects import Keys
from proto.workers import ModelCard, WorkerRecord

WHY_MAX_CHARS = 300


@dataclass(frozen=True)
class Joined:
    """A worker was not known and is."""

    record: WorkerRecord


@dataclass(frozen=True)
class Updated:
    """A known worker says something else of itself; a new incarnation is a new life."""

    record: WorkerRecord
    previous: WorkerRecord


@dataclass(frozen=True)
class Left:
    """A worker is gone: it said so, its lease ended, or its record cannot be read."""

    record: WorkerRecord


@dataclass(frozen=True)
class ModelChanged:
    """A model is new, or its card says something else."""

    card: ModelCard


@dataclass(frozen=True)
class ModelGone:
    """A model's card was deleted, or cannot be read."""

    card: ModelCard


@dataclass(frozen=True)
class BadRecord:
    """An entry that does not validate or does not belong under its key; it is skipped."""

    key: str
    why: str


Change = Joined | Updated | Left | ModelChanged | ModelGone


class Membership:
    """The workers and models of one cluster."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._models: dict[str, ModelCard] = {}
        self.workers: Mapping[WorkerId, WorkerRecord] = MappingProxyType(self._workers)
        self.models: Mapping[str, ModelCard] = MappingProxyType(self._models)

    def put(self, key: str, value: bytes) -> list[Change | BadRecord]:
        """The store holds `value` under `key`; what that changes, in order."""
        try:
            if key.startswith(self._keys.workers):
                return self._put_worker(key, value)
            if key.startswith(self._keys.models):
                return self._put_model(key, value)
        except (ValidationError, BadName, _WrongKey) as error:
            return [BadRecord(key, _why(error)), *self.delete(key)]
        return [BadRecord(key, "neither a worker's nor a model's key")]

    def delete(self, key: str) -> list[Change]:
        """The store no longer holds `key`; what that changes."""
        if key.startswith(self._keys.workers):
            worker = self._workers.pop(WorkerId(key.removeprefix(self._keys.workers)), None)
            return [Left(worker)] if worker else []
        if key.startswith(self._keys.models):
            name = self._keys.model_of(key)
            if self._keys.model(name) != key:
                return []  # another spelling of the name, under which nothing was ever known
            card = self._models.pop(name, None)
            return [ModelGone(card)] if card else []
        return []

    def _put_worker(self, key: str, value: bytes) -> list[Change | BadRecord]:
        record = WorkerRecord.model_validate_json(value)
        if self._keys.worker(record.worker) != key:
            raise _WrongKey(f"the record is of worker {record.worker!r}")
        previous = self._workers.get(record.worker)
        if record == previous:
            return []
        self._workers[record.worker] = record
        return [Joined(record) if previous is None else Updated(record, previous)]

    def _put_model(self, key: str, value: bytes) -> list[Change | BadRecord]:
        card = ModelCard.model_validate_json(value)
        if self._keys.model(card.name) != key:
            raise _WrongKey(f"the card is of model {card.name!r}")
        if card == self._models.get(card.name):
            return []
        self._models[card.name] = card
        return [ModelChanged(card)]


class _WrongKey(ValueError):
    """An entry that says it belongs elsewhere."""


def _why(error: Exception) -> str:
    """Which field and what is wrong with it, on one line; of the value itself, nothing."""
    if isinstance(error, ValidationError):
        details = error.errors(include_url=False, include_input=False)
        text = "; ".join(f"{'.'.join(map(str, d['loc'])) or 'value'}: {d['msg']}" for d in details)
    else:
        text = str(error)
    return text if len(text) <= WHY_MAX_CHARS else f"{text[:WHY_MAX_CHARS]}..."
