"""What the registry is told of an engine's hardware: what the operator says, and the catalogue."""

from __future__ import annotations

from agents.settings import AgentSettings
from controlplane.runtime.service import CannotServe
from proto.hardware import Catalogue
from proto.workers import Hardware


class PrecisionUnknown(CannotServe):
    """The engine is said to multiply in what its hardware cannot."""


def hardware_of(settings: AgentSettings, catalogue: Catalogue) -> Hardware:
    """The record. Raises `PrecisionUnknown`. Of hardware that is not in the catalogue, only what
    the operator says is known."""
    accelerator = catalogue.of(settings.hardware)
    told = Hardware(
        profile=settings.hardware,
        accelerators=settings.accelerators,
        topology=settings.topology,
        precision=settings.precision,
        moe=settings.moe,
        weights_gb=settings.weights_gb,
        price_per_hour=settings.price_per_hour,
    )
    if accelerator is None:
        return told
    if settings.precision and settings.precision not in accelerator.precisions:
        raise PrecisionUnknown(
            f"agent.precision is {settings.precision}, which {accelerator.title} has not:"
            f" {', '.join(accelerator.precisions)}"
        )
    price = settings.price_per_hour
    if price is None and accelerator.price_per_hour is not None:
        price = accelerator.price_per_hour * settings.accelerators
    return told.model_copy(
        update={
            "memory_gb": accelerator.memory_gb,
            "bandwidth_gb_s": accelerator.bandwidth_gb_s,
            "nvlink_accelerators": accelerator.nvlink_accelerators,
            "price_per_hour": price,
        }
    )
