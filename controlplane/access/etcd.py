"""The users and roles of etcd. Pure; `proto.wire.etcd.users` puts them in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proto.access import Rights, Role, rights
from proto.ids import WorkerId
from proto.subjects import Keys


def users(cluster: str, workers: Sequence[WorkerId] = ()) -> Mapping[str, Rights]:
    """Each user's rights. With `workers` each has a user of its own, that writes its own record
    alone; without, agents share the user `agent`."""
    keys = Keys(cluster)
    granted = {
        role.value: rights(role, keys) for role in Role if role is not Role.AGENT or not workers
    }
    return granted | {worker: rights(Role.AGENT, keys, worker) for worker in workers}
