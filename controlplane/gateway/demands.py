"""What a client may demand of the worker that serves it, in headers.

    x-tokenplane-topology: zone=eu-1, rack=7       only where the hardware bears these labels
    x-tokenplane-workers: engine-0, engine-3       only these; for tenants that may pin
    x-tokenplane-workload: portable                what work it is, beside what its body shows

Narrowing down where a request may go harms nobody but who asks. Pins can crowd one worker, so a
tenant must be allowed to use them; which taints are tolerated is the operator's word alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from controlplane.gateway.openai import Ask, ClientError
from controlplane.gateway.tenants import Tenant
from proto.constraints import UNCONSTRAINED, Constraints
from proto.ids import BadName, WorkerId, check_name

TOPOLOGY, WORKERS = "x-tokenplane-topology", "x-tokenplane-workers"
WORKLOAD = "x-tokenplane-workload"
ITEMS_MAX = 64


def constraints_of(headers: Mapping[str, str], tenant: Tenant) -> Constraints:
    """What a request is to be kept to. Raises `ClientError` (400, 403)."""
    topology, workers = headers.get(TOPOLOGY, ""), headers.get(WORKERS, "")
    if not (topology or workers or tenant.tolerations):
        return UNCONSTRAINED
    if workers and not tenant.pins:
        raise ClientError(
            403, f"{WORKERS} is not allowed for tenant {tenant.name}", code="pins_not_allowed"
        )
    return Constraints(
        only=tuple(_workers(workers)),
        topology=tuple(sorted(_labels(topology))),
        tolerations=tenant.tolerations,
    )


def workload_of(headers: Mapping[str, str], ask: Ask) -> tuple[str, ...]:
    """What work it is: what the body shows, and what the client says. Raises `ClientError`."""
    said = _items(headers.get(WORKLOAD, ""), WORKLOAD)
    for item in said:
        try:
            check_name(item, "workload")
        except BadName as error:
            raise _wrong(WORKLOAD, str(error)) from error
    return tuple(dict.fromkeys((ask.kind.value, *said)))


def _labels(header: str) -> Iterator[tuple[str, str]]:
    for item in _items(header, TOPOLOGY):
        label, equals, value = (part.strip() for part in item.partition("="))
        if not (label and equals and value):
            raise _wrong(TOPOLOGY, f"write label=value, and not {item!r}")
        yield label, value


def _workers(header: str) -> Iterator[WorkerId]:
    for item in _items(header, WORKERS):
        try:
            yield WorkerId(check_name(item, "worker"))
        except BadName as error:
            raise _wrong(WORKERS, str(error)) from error


def _items(header: str, name: str) -> list[str]:
    """What a header lists, separated by commas."""
    if not header:
        return []
    items = [item.strip() for item in header.split(",")]
    if len(items) > ITEMS_MAX:
        raise _wrong(name, f"at most {ITEMS_MAX} can be named")
    return items


def _wrong(header: str, why: str) -> ClientError:
    return ClientError(400, f"{header}: {why}", code="invalid_header", param=header)
