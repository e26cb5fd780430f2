"""What clients may ask for: models, and LoRA adapters, which have names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from controlplane.registry.view import RegistryView
from proto.ids import WorkerId
from proto.workers import ModelCard


class Served(NamedTuple):
    """What a name stands for."""

    card: ModelCard
    """Of the model; an adapter is of one."""
    adapter: str = ""


def served(view: RegistryView, name: str) -> Served | None:
    """The model of that name, else the adapter that some worker has; None if there is neither."""
    if card := view.models.get(name):
        return Served(card)
    for record in view.workers.values():
        if name in record.adapters and (card := view.models.get(record.model)):
            return Served(card, name)
    return None


def engine_of(view: RegistryView, worker: WorkerId) -> str:
    """Name and version of a worker's engine, as `vllm/0.11.2`; "" if the worker has gone."""
    record = view.workers.get(worker)
    if record is None:
        return ""
    return f"{record.engine}/{record.engine_version}" if record.engine_version else record.engine


def context_tokens(view: RegistryView) -> Mapping[str, int]:
    """Every name that some worker answers to, with how long a context may be."""
    found = {}
    for record in view.workers.values():
        if card := view.models.get(record.model):
            for name in (record.model, *record.adapters):
                found[name] = card.context_tokens
    return found
