"""The only place where services meet carriers: one function a process."""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import TaskStatus
from pydantic import Field, model_validator

from controlplane.capacity import Kept, WorkerClass
from controlplane.console.service import ConsoleService
from controlplane.console.settings import ConsoleSettings
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.service import GatewayService, Surroundings
from controlplane.gateway.settings import GatewaySettings
from controlplane.local.running import located
from controlplane.planner.core import PlannerCore
from controlplane.planner.metrics import PlannerMetrics
from controlplane.planner.profile import ProfileUnusable, read
from controlplane.planner.scalers.compose import ComposeActuator
from controlplane.planner.scalers.follow import Actuator, ScalerService
from controlplane.planner.scalers.kubernetes import KubernetesActuator
from controlplane.planner.scalers.settings import ScalerSettings
from controlplane.planner.service import PlannerService
from controlplane.planner.service import Surroundings as PlannerSurroundings
from controlplane.planner.settings import PlannerSettings
from controlplane.registry.service import RegistryService
from controlplane.registry.view import RegistryView
from controlplane.router.core import RouterCore
from controlplane.router.metrics import RouterMetrics
from controlplane.router.plugins import installed
from controlplane.router.service import RouterService
from controlplane.router.settings import RouterSettings
from controlplane.runtime.live import LiveSettings
from controlplane.runtime.process import Kit, run_command
from controlplane.runtime.service import CannotServe, Service
from controlplane.runtime.settings import CommonSettings
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.service import TransferService
from controlplane.transfer.settings import TransferSettings
from proto.ids import ServiceId
from proto.subjects import Keys, Subjects
from proto.wire.http import HttpClient
from proto.wire.ports import Store

log = logging.getLogger(__name__)


class RouterProcess(CommonSettings):
    """All settings of a router's process."""

    router: RouterSettings = Field(RouterSettings(), description="How it decides")


class GatewayProcess(CommonSettings):
    """All settings of a gateway's process."""

    gateway: GatewaySettings = Field(GatewaySettings(), description="Where it listens, and waits")
    router: RouterSettings = Field(
        RouterSettings(), description="How it decides, with gateway.own_router"
    )

    @property
    def asks_itself(self) -> bool:
        """With a router of its own."""
        return self.gateway.own_router


class TransferProcess(CommonSettings):
    """All settings of a transfer coordinator's process."""

    transfer: TransferSettings = Field(TransferSettings(), description="When KV blocks are moved")


class ConsoleProcess(CommonSettings):
    """All settings of a console's process."""

    console: ConsoleSettings = Field(ConsoleSettings(), description="Where the page is")


class PlannerProcess(CommonSettings):
    """All settings of a planner's process."""

    planner: PlannerSettings = Field(
        PlannerSettings(), description="What is promised, and within which bounds"
    )
    scaler: ScalerSettings = Field(ScalerSettings(), description="Who acts on what is planned")
    router: RouterSettings = Field(
        RouterSettings(), description="As routers have it: when they let requests wait, or refuse"
    )

    @model_validator(mode="after")
    def _capacity_comes_first(self) -> Self:
        """Routers hold requests back above the load at which workers are added (AS19)."""
        share, kv_max = self.router.busy_decode_share, self.planner.kv_max
        if share and share <= kv_max:
            raise ValueError(
                f"router.busy_decode_share is {share:g}, and must be above planner.kv_max"
                f" ({kv_max:g}), so that there are more workers before requests are refused;"
                " raise the one or lower the other"
            )
        return self


def router(argv: Sequence[str]) -> int:
    """`tokenplane router`"""
    return run_command("router", RouterProcess, build_router, argv)


def gateway(argv: Sequence[str]) -> int:
    """`tokenplane gateway`"""
    return run_command("gateway", GatewayProcess, build_gateway, argv)


def planner(argv: Sequence[str]) -> int:
    """`tokenplane planner`"""
    return run_command("planner", PlannerProcess, build_planner, argv)


def registry(argv: Sequence[str]) -> int:
    """`tokenplane registry`"""
    return run_command("registry", CommonSettings, build_registry, argv)


def transfer(argv: Sequence[str]) -> int:
    """`tokenplane transfer`"""
    return run_command("transfer", TransferProcess, build_transfer, argv)


def console(argv: Sequence[str]) -> int:
    """`tokenplane console`, of the cluster that runs here if no other one is named"""
    return run_command("console", ConsoleProcess, build_console, argv, settle=located)


def build_router(settings: RouterProcess, kit: Kit) -> Sequence[Service]:
    """A router and the view it follows."""
    view = RegistryView(kit.carriers.store, Keys(settings.cluster))
    service = _router(settings.router, settings.cluster, kit, view)
    live = _live(settings, kit, ServiceId(service.core.name))
    live.follow("router", settings.router, service.adopt)
    return [view, live, service]


def _router(settings: RouterSettings, cluster: str, kit: Kit, view: RegistryView) -> RouterService:
    core = RouterCore(settings, _service_id("router"), random.Random(), installed())
    bus, metrics = kit.carriers.bus, RouterMetrics(kit.metrics)
    return RouterService(settings, core, bus, Subjects(cluster), view, metrics)


def build_gateway(settings: GatewayProcess, kit: Kit) -> Sequence[Service]:
    """A gateway and the view it follows, and a router before it if it is to have one of its own."""
    view = RegistryView(kit.carriers.store, Keys(settings.cluster))
    around = Surroundings(
        service=_service_id("gateway"),
        secret=settings.secret_bytes,
        bus=kit.carriers.bus,
        http=kit.carriers.http,
        server=kit.carriers.server,
        store=kit.carriers.store,
        keys=Keys(settings.cluster),
        subjects=Subjects(settings.cluster),
        view=view,
        metrics=GatewayMetrics(kit.metrics),
    )
    service = GatewayService(settings.gateway, around)
    live = _live(settings, kit, around.service, kind="gateway")
    live.follow("gateway", settings.gateway, service.dispatcher.adopt)
    if not settings.gateway.own_router:
        if settings.router != RouterSettings():
            log.warning(
                "router.* is set, and this gateway has no router of its own: nothing here goes by"
                " it; set it where `tokenplane router` runs, or set gateway.own_router"
            )
        return [view, live, service]
    router = _router(settings.router, settings.cluster, kit, view)
    live.follow("router", settings.router, router.adopt)
    return [view, live, router, service]


def build_planner(settings: PlannerProcess, kit: Kit) -> Sequence[Service]:
    """A planner and the view it follows."""
    keys = Keys(settings.cluster)
    view = RegistryView(kit.carriers.store, keys)
    around = PlannerSurroundings(
        bus=kit.carriers.bus,
        store=kit.carriers.store,
        subjects=Subjects(settings.cluster),
        keys=keys,
        view=view,
        metrics=PlannerMetrics(kit.metrics),
    )
    name = _service_id("planner")
    core = PlannerCore(settings.planner, name)
    profile = settings.planner.profile
    planner = PlannerService(core, around, profiles=_profiles(profile) if profile else None)
    live = _live(settings, kit, name, kind="planner")
    live.follow("planner", settings.planner, core.adopt)
    services: list[Service] = [view, live, planner]
    if settings.scaler.kind != "none":
        services.append(
            _Scaler(settings.scaler, kit.carriers.store, keys, lambda: planner.leadership.leads)
        )
    return services


def _profiles(path: Path) -> Mapping[WorkerClass, Kept]:
    try:
        return read(path.read_bytes())
    except (OSError, ProfileUnusable) as error:
        raise CannotServe(f"planner.profile: cannot use {path}: {error}") from error


class _Scaler:
    """A scaler with a connection of its own to where containers or pods are managed."""

    name = "scaler"

    def __init__(
        self, settings: ScalerSettings, store: Store, keys: Keys, acts: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._acts = acts

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Follow what is wanted, until cancelled."""
        settings = self._settings
        docker = settings.kind == "compose"
        client = (
            HttpClient(unix_socket=str(settings.socket))
            if docker
            else HttpClient(ca=str(settings.ca_file) if settings.ca_file.exists() else None)
        )
        async with client as http, anyio.create_task_group() as tasks:
            actuator: Actuator = (
                ComposeActuator(http, tasks, project=settings.project, drain_s=settings.drain_s)
                if docker
                else KubernetesActuator(
                    http,
                    server=settings.server,
                    namespace=settings.namespace,
                    workloads=settings.workloads,
                    token=lambda: settings.token_file.read_text().strip(),
                )
            )
            service = ScalerService(self._store, self._keys, actuator, acts=self._acts)
            await service.run(task_status=task_status)

    async def drain(self) -> None:
        """Workers stay as they are."""


def build_registry(settings: CommonSettings, kit: Kit) -> Sequence[Service]:
    """The registry's service."""
    view = RegistryView(kit.carriers.store, Keys(settings.cluster))
    subjects = Subjects(settings.cluster)
    service = RegistryService(kit.carriers.bus, subjects, view, kit.metrics)
    return [view, service]


def build_transfer(settings: TransferProcess, kit: Kit) -> Sequence[Service]:
    """A transfer coordinator and the view it follows."""
    view = RegistryView(kit.carriers.store, Keys(settings.cluster))
    name = _service_id("transfer")
    service = TransferService(
        settings.transfer,
        kit.carriers.bus,
        Subjects(settings.cluster),
        view,
        TransferMetrics(kit.metrics),
        service=name,
    )
    live = _live(settings, kit, name)
    live.follow("transfer", settings.transfer, service.adopt)
    return [view, live, service]


def build_console(settings: ConsoleProcess, kit: Kit) -> Sequence[Service]:
    """The console and the view it shows."""
    view = RegistryView(kit.carriers.store, Keys(settings.cluster))
    service = ConsoleService(
        settings.console, settings.cluster, kit.carriers.bus, view, kit.metrics
    )
    return [view, _live(settings, kit, _service_id("console"), kind="console"), service]


def _live(
    settings: CommonSettings, kit: Kit, service: ServiceId, *, kind: str = ""
) -> LiveSettings:
    """Those of a process that is to be told of them."""
    keys, subjects = Keys(settings.cluster), Subjects(settings.cluster)
    store, bus = kit.carriers.store, kit.carriers.bus
    return LiveSettings(service, store, bus, keys, subjects, time.time, kind=kind)


def _service_id(kind: str) -> ServiceId:
    """A new name each time: a restarted router is another one, with a ledger of its own."""
    return ServiceId(f"{kind}-{secrets.token_hex(4)}")
