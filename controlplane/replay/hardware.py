"""Hardware by name: how fast a simulated engine on it is, and what a worker of it costs an hour."""

from __future__ import annotations

from collections.abc import Iterable

from proto.hardware import Catalogue
from workers.sim.chips import Chip
from workers.sim.roofline import profile_of
from workers.sim.timing import Profile


def timing(name: str, catalogue: Catalogue) -> Profile:
    """The timing profile of that name, or of the accelerator. ValueError says what there is."""
    chips = {
        name: Chip(each.memory_gb, each.bandwidth_gb_s, each.dense_tflops)
        for name, each in catalogue.items()
    }
    return profile_of(name, chips)


def timings(names: Iterable[str], catalogue: Catalogue) -> tuple[Profile, ...]:
    """Of several, in turn."""
    return tuple(timing(name, catalogue) for name in names)


def dollars_per_hour(fleet: Iterable[Profile], catalogue: Catalogue) -> float | None:
    """For workers of these profiles together; None where a price is not known."""
    dollars = 0.0
    for profile in fleet:
        accelerator = catalogue.of(profile.name)
        if accelerator is None or accelerator.price_per_hour is None:
            return None
        dollars += accelerator.price_per_hour * profile.accelerators
    return dollars
