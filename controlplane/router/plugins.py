"""What users have added, found by its entry points when a process starts.

[project.entry-points."tokenplane.policies"]
emptiest = "my_package:emptiest"          # a `controlplane.router.policies.base.Policy`

[project.entry-points."tokenplane.filters"]
no_batch = "my_package:no_batch"          # a `controlplane.router.filters.Filter`
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from controlplane.router.policies.catalog import POLICIES, Catalog, Faults
from controlplane.router.policies.guarded import guarded_filter, guarded_policy
from controlplane.runtime.service import CannotServe

POLICY_GROUP, FILTER_GROUP = "tokenplane.policies", "tokenplane.filters"


class PluginBroken(CannotServe):
    """A plug-in cannot be used; names its distribution, and says why."""


@cache
def installed() -> Catalog:
    """All that can be asked for in this process. Raises `PluginBroken`."""
    return discover()


def discover() -> Catalog:
    """Ours, and what is installed beside us at this moment. Raises `PluginBroken`."""
    faults = Faults()
    policies = {
        name: guarded_policy(each)
        for name, each in _found(POLICY_GROUP, ("prompt", "candidates", "state"), POLICIES)
    }
    filters = {
        name: guarded_filter(name, each, faults.note)
        for name, each in _found(FILTER_GROUP, ("request", "record"), {})
    }
    return Catalog({**POLICIES, **policies}, filters, faults)


def _found(
    group: str, arguments: tuple[str, ...], ours: Mapping[str, object]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every entry point of the group, loaded; it will be called with these arguments."""
    seen: dict[str, str] = {}
    for point in entry_points(group=group):
        where = _where(point)
        if point.name in ours:
            raise PluginBroken(f"{where} would replace our own of that name; choose another")
        if point.name in seen:
            raise PluginBroken(f"{where} has the same name as one of {seen[point.name]}")
        seen[point.name] = _distribution(point)
        yield point.name, _loaded(point, where, arguments)


def _loaded(point: EntryPoint, where: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    try:
        found = point.load()
    except Exception as error:  # it may raise anything: it is not ours
        raise PluginBroken(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise PluginBroken(f"{where} is no function")
    try:
        inspect.signature(found).bind(*arguments)
    except (TypeError, ValueError) as error:
        raise PluginBroken(f"{where} cannot be called with {', '.join(arguments)}") from error
    made: Callable[..., Any] = found
    return made


def _where(point: EntryPoint) -> str:
    kind = point.group.removeprefix("tokenplane.")
    return f"plug-in {point.name!r} of {_distribution(point)} ({kind}: {point.value})"


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "no distribution"
