"""Records to make tests of: whatever a test does not care about has a value already."""

from __future__ import annotations

from proto.ids import WorkerId
from proto.subjects import Keys
from proto.workers import ModelCard, WorkerRecord, WorkerState

KEYS = Keys("test")


def worker(
    name: str = "w1",
    *,
    model: str = "sim",
    state: WorkerState = WorkerState.READY,
    incarnation: int = 1,
) -> WorkerRecord:
    return WorkerRecord(
        worker=WorkerId(name),
        incarnation=incarnation,
        model=model,
        engine="sim",
        url="http://127.0.0.1:8000",
        state=state,
        block_tokens=16,
        total_blocks=1024,
    )


def card(name: str = "sim", *, context_tokens: int = 4096) -> ModelCard:
    return ModelCard(name=name, context_tokens=context_tokens)


def entry(record: WorkerRecord | ModelCard) -> tuple[str, bytes]:
    """The key a record belongs under, and its value."""
    if isinstance(record, WorkerRecord):
        return KEYS.worker(record.worker), record.model_dump_json().encode()
    return KEYS.model(record.name), record.model_dump_json().encode()
