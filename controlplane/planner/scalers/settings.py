"""The settings of scalers that run beside a planner."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from controlplane.runtime.settings import Group

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ScalerSettings(Group):
    """Who starts and stops workers as the planner wants; one of its replicas at a time does."""

    kind: Literal["none", "compose", "kubernetes"] = Field(
        "none", description="`compose`: containers of this Docker host; `kubernetes`: workloads"
    )
    socket: Path = Field(Path("/var/run/docker.sock"), description="compose: Docker's socket")
    project: str = Field("tokenplane", description="compose: the project whose containers they are")
    drain_s: float = Field(
        120.0, ge=0, description="compose: seconds that a worker may take to finish its requests"
    )
    server: str = Field(
        "https://kubernetes.default.svc", description="kubernetes: where the API server is"
    )
    namespace: str = Field("default", description="kubernetes: of the workloads")
    workloads: dict[str, str] = Field(
        {},
        description="kubernetes: deployments/NAME or statefulsets/NAME by the pool's name, which is"
        " MODEL.ROLE.HARDWARE",
    )
    token_file: Path = Field(ACCOUNT / "token", description="kubernetes: of the service account")
    ca_file: Path = Field(ACCOUNT / "ca.crt", description="kubernetes: who signed the API server")

    @model_validator(mode="after")
    def _workloads_to_scale(self) -> Self:
        if self.kind == "kubernetes" and not self.workloads:
            raise ValueError("kubernetes scales workloads: name them in scaler.workloads")
        return self
