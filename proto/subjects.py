"""Every subject on the bus and every key in the store. No other module spells one.

| subject                              | says                | by -> to               |
|--------------------------------------|---------------------|------------------------|
| `tp.<cluster>.kv.<worker>`           | `KvBatch`           | agent -> routers       |
| `tp.<cluster>.load.<worker>`         | `LoadReport`        | agent -> everyone      |
| `tp.<cluster>.route`                 | `RouteRequest`      | gateway -> one router  |
| `tp.<cluster>.progress.<worker>`     | `Progress`          | gateway -> routers, agent |
| `tp.<cluster>.ledger.<router>`       | `Bookings`          | router -> routers      |
| `tp.<cluster>.withdrawn`             | `Withdrawn`         | gateway -> routers     |
| `tp.<cluster>.bookings`              | `BookingsRequest`   | new router -> one router |
| `tp.<cluster>.decisions`             | `Decision`          | router -> everyone     |
| `tp.<cluster>.explain`               | `ExplainRequest`    | anyone -> routers      |
| `tp.<cluster>.explained.<request>`   | `Explained`         | router -> who asked    |
| `tp.<cluster>.agent.<worker>.<verb>` | `KvSnapshotRequest` | router -> one agent    |
| `tp.<cluster>.agent.<worker>.<verb>` | `Command`           | coordinator -> one agent |
| `tp.<cluster>.transfer.<verb>`       | `Begin`, `Report`   | gateway -> one coordinator |
| `tp.<cluster>.transfer.move`         | `Move`              | gateway, router -> one coordinator |
| `tp.<cluster>.transfer.evacuate`     | `Evacuate`          | agent -> one coordinator |
| `tp.<cluster>.transitions`           | `Transition`        | coordinator -> everyone |
| `tp.<cluster>.agent.<worker>.drain`  | `DrainRequest`      | operator -> one agent |
| `tp.<cluster>.settings`              | `SettingsQuestion`  | anyone -> every process |
| `tp.<cluster>.settings.<service>`    | `SettingsTold`      | process -> who asked |
| `tp.<cluster>.settings.<service>.get`| `SettingsQuestion`  | anyone -> one process |
| `tp.<cluster>.registry.<verb>`       | `WorkersRequest`    | anyone -> one registry |
| `tp.<cluster>.requests`              | `RequestRecord`     | gateway -> stream      |
| `tp.<cluster>.plan`                  | `PlanTick`          | planner -> stream      |

`route`, `bookings`, `agent`, `transfer` and `registry` are request and reply; `requests` and `plan`
are stored by JetStream and come at least once; all else is at most once, numbered where a loss must
be noticed. Tickets of transfers are in a bucket of JetStream, by their ids.

| key                          | holds          | by    | lease |
|------------------------------|----------------|-------|-------|
| `/tp/<cluster>/workers/<id>` | `WorkerRecord` | agent | yes   |
| `/tp/<cluster>/config/<group>.<setting>` | JSON | operator | no |
| `/tp/<cluster>/models/<name>`| `ModelCard`    | agent | no: what a model is outlives its workers |
| `/tp/<cluster>/desired/<pool>` | `Desired`    | planner | no: scalers go on by the last word |
| `/tp/<cluster>/scaled/<pool>`  | `Scaled`     | scaler | no |
| `/tp/<cluster>/planner/leader` | a planner's name | planner | yes: who holds it decides |
| `/tp/<cluster>/planner/state`  | `PlannerState` | planner | no: the next leader goes on from it |
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from proto.ids import RequestId, ServiceId, WorkerId, check_name

ROOT = "tp"


class Subjects:
    """The subjects of one cluster."""

    def __init__(self, cluster: str) -> None:
        self._root = f"{ROOT}.{check_name(cluster, 'cluster')}"

    def kv(self, worker: WorkerId) -> str:
        return f"{self._root}.kv.{check_name(worker, 'worker')}"

    @property
    def every_kv(self) -> str:
        return f"{self._root}.kv.*"

    def load(self, worker: WorkerId) -> str:
        return f"{self._root}.load.{check_name(worker, 'worker')}"

    @property
    def every_load(self) -> str:
        return f"{self._root}.load.*"

    @property
    def route(self) -> str:
        return f"{self._root}.route"

    def progress(self, worker: WorkerId) -> str:
        return f"{self._root}.progress.{check_name(worker, 'worker')}"

    @property
    def every_progress(self) -> str:
        return f"{self._root}.progress.*"

    def ledger(self, router: ServiceId) -> str:
        return f"{self._root}.ledger.{check_name(router, 'router')}"

    @property
    def every_ledger(self) -> str:
        return f"{self._root}.ledger.*"

    @property
    def decisions(self) -> str:
        return f"{self._root}.decisions"

    @property
    def explain(self) -> str:
        return f"{self._root}.explain"

    def explained(self, request: RequestId) -> str:
        return f"{self._root}.explained.{check_name(request, 'request')}"

    @property
    def every_explained(self) -> str:
        return f"{self._root}.explained.*"

    @property
    def settings(self) -> str:
        return f"{self._root}.settings"

    def settings_of(self, service: str) -> str:
        return f"{self.settings}.{check_name(service, 'service')}"

    def settings_asked(self, service: str) -> str:
        """One process, asked for its settings."""
        return f"{self.settings_of(service)}.get"

    @property
    def every_settings_asked(self) -> str:
        return f"{self.settings}.*.get"

    @property
    def every_drain(self) -> str:
        return f"{self._root}.agent.*.drain"

    @property
    def every_settings(self) -> str:
        return f"{self.settings}.*"

    @property
    def withdrawn(self) -> str:
        return f"{self._root}.withdrawn"

    @property
    def bookings(self) -> str:
        return f"{self._root}.bookings"

    def snapshot(self, worker: WorkerId) -> str:
        return self.agent(worker, "snapshot")

    def agent(self, worker: WorkerId, verb: str) -> str:
        """Commands to the agent of one worker."""
        return f"{self._root}.agent.{check_name(worker, 'worker')}.{verb}"

    def transfer(self, verb: str) -> str:
        return f"{self._root}.transfer.{verb}"

    @property
    def transitions(self) -> str:
        return f"{self._root}.transitions"

    @property
    def tickets_bucket(self) -> str:
        """The bucket of transfer tickets; a bucket's name has no dots."""
        return f"{self._root}_TICKETS".replace(".", "_").upper()

    def every_command(self, worker: WorkerId | None = None) -> str:
        """Whatever agents are told to do, or the agent of one worker."""
        return f"{self._root}.agent.{check_name(worker, 'worker') if worker else '*'}.*"

    @property
    def every_transfer(self) -> str:
        return f"{self._root}.transfer.*"

    @property
    def every_snapshot(self) -> str:
        return f"{self._root}.agent.*.snapshot"

    @property
    def registry_workers(self) -> str:
        return f"{self._root}.registry.workers"

    @property
    def requests(self) -> str:
        return f"{self._root}.requests"

    @property
    def plan(self) -> str:
        return f"{self._root}.plan"

    @property
    def everything(self) -> str:
        return f"{self._root}.>"

    @property
    def requests_stream(self) -> str:
        """The durable stream of request records; a stream's name has no dots."""
        return self._stream("REQUESTS")

    @property
    def plan_stream(self) -> str:
        """The durable stream of what planners thought."""
        return self._stream("PLAN")

    def _stream(self, name: str) -> str:
        return f"{self._root}_{name}".replace(".", "_").upper()


class Keys:
    """The store's keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        self._root = f"/{ROOT}/{check_name(cluster, 'cluster')}"

    @property
    def everything(self) -> str:
        return f"{self._root}/"

    @property
    def every_cluster(self) -> str:
        return f"/{ROOT}/"

    @property
    def doctor(self) -> str:
        """Written and removed again, to see whether that is possible."""
        return f"{self._root}/doctor"

    @property
    def workers(self) -> str:
        return f"{self._root}/workers/"

    def worker(self, worker: WorkerId) -> str:
        return f"{self.workers}{check_name(worker, 'worker')}"

    @property
    def config(self) -> str:
        return f"{self._root}/config/"

    def config_of(self, setting: str) -> str:
        """`setting` is a group and a name, as in `router.policy`."""
        return f"{self.config}{setting}"

    @property
    def models(self) -> str:
        return f"{self._root}/models/"

    def model(self, name: str) -> str:
        """Model names may hold slashes and more, so they are percent-encoded."""
        return f"{self.models}{quote(name, safe='')}"

    @property
    def tenants(self) -> str:
        return f"{self._root}/tenants/"

    def tenant(self, name: str) -> str:
        return f"{self.tenants}{check_name(name, 'tenant')}"

    def model_of(self, key: str) -> str:
        """The model name a key stands for."""
        return unquote(key.removeprefix(self.models))

    @property
    def desired(self) -> str:
        return f"{self._root}/desired/"

    def desired_of(self, pool: str) -> str:
        """`pool` is the name of a `proto.scaling.Pool`."""
        return f"{self.desired}{pool}"

    @property
    def scaled(self) -> str:
        return f"{self._root}/scaled/"

    def scaled_of(self, pool: str) -> str:
        return f"{self.scaled}{pool}"

    @property
    def planner_leader(self) -> str:
        return f"{self._root}/planner/leader"

    @property
    def planner_state(self) -> str:
        return f"{self._root}/planner/state"
