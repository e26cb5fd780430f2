"""Who can take a request: what is kept of it is what would be found anew."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from controlplane.capacity import Capacities
from controlplane.router.busy import BusyLimits
from controlplane.router.filters import standing
from controlplane.router.fleet import Fleet
from controlplane.router.ledger import Ledger
from proto.constraints import Constraints
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.workers import WorkerRecord, WorkerState
from tests.support.router_core import question, record, report

NAMES = st.sampled_from([WorkerId(name) for name in "ab"])
ZONES = st.sampled_from("xy")
RECORDS = st.builds(
    lambda name, state, taints, zone, adapters: record(
        name,
        state=state,
        taints=taints,
        adapters=adapters,
        hardware={"topology": {"zone": zone}},
    ),
    NAMES,
    st.sampled_from([WorkerState.READY, WorkerState.READY, WorkerState.DRAINING]),
    st.sampled_from([(), ("spot",)]),
    ZONES,
    st.sampled_from([(), ("poet",)]),
)
REPORTS = st.builds(lambda name, healthy: report(name, healthy=healthy), NAMES, st.booleans())
CONSTRAINTS = st.sampled_from(
    [
        Constraints(),
        Constraints(tolerations=("spot",)),
        Constraints(topology=(("zone", "x"),), tolerations=("spot",)),
        Constraints(adapter="poet", only=(WorkerId("a"),)),
    ]
)
STEPS = st.lists(st.one_of(RECORDS, REPORTS, NAMES, CONSTRAINTS), max_size=40)


@given(STEPS)
def test_what_is_kept_is_what_would_be_found_anew(steps: list[object]) -> None:
    """A record puts a worker there, a name takes it away, constraints ask."""
    fleet = Fleet(Ledger(60.0), Capacities(), 5.0, BusyLimits(0.0, 0.0))
    records: dict[WorkerId, WorkerRecord] = {}
    reports: dict[WorkerId, LoadReport] = {}
    for step in steps:
        if isinstance(step, Constraints):
            request = msgspec.structs.replace(question(), constraints=step)
            admitted = fleet.sift(request, [])
            wanted = {
                worker: standing(each, reports.get(worker)) or step.refusal(each)
                for worker, each in records.items()
            }
            assert {fleet.workers[row] for row in admitted.rows} == {
                worker for worker, reason in wanted.items() if not reason
            }
            assert dict(admitted.refused) == {w: reason for w, reason in wanted.items() if reason}
        elif isinstance(step, LoadReport):
            if step.worker in records:
                reports[step.worker] = step
                fleet.observe(step, 0.0)
        elif isinstance(step, str):
            if records.pop(WorkerId(step), None):
                reports.pop(WorkerId(step), None)
                fleet.remove(WorkerId(step))
        else:
            assert isinstance(step, WorkerRecord)
            records[step.worker] = step
            fleet.put(step)
