"""The manifests: valid by Kubernetes' own schemas, and nothing in them points to nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agents.settings import AgentProcess
from controlplane import compose
from controlplane.cli.access import new_passwords
from controlplane.cli.main import COMMANDS
from controlplane.runtime.settings import CommonSettings, load
from handbook.pages import KUBERNETES_WORKERS as WORKERS
from tests.support.nats_server import nats_server
from tests.unit.deploy.manifests import FOLDER, Object, references, render, walk

VERSIONS = ("1.30", "1.34")
KUSTOMIZE = next(
    (argv for argv in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(argv[0])),
    [],
)
GIVEN = {
    "secrets.env": new_passwords(WORKERS),
    "tenants.toml": '[tenants.acme]\nkeys = ["sha256:00"]\n',
}
OBJECTS = render(GIVEN)
WORKLOADS = [each for each in OBJECTS if each["kind"] in {"Deployment", "StatefulSet", "Job"}]
FIELDS = {"metadata.name": "sim-0", "metadata.namespace": "tokenplane", "spec.nodeName": "node-a"}
INTERRUPTED = {"access", "console"}
"""What a drained node may stop for a while."""
SERVERS = [each for each in WORKLOADS if each["metadata"]["name"] not in INTERRUPTED]


def _named(each: Object) -> str:
    """Without the hash that a generated object's name ends with."""
    return re.sub(r"-[0-9a-f]{10}$", "", f"{each['kind']}/{each['metadata']['name']}")


def _pod(workload: Object) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def _containers() -> Iterator[Any]:
    for workload in WORKLOADS:
        for container in _pod(workload)["containers"]:
            yield pytest.param(workload, container, id=f"{_named(workload)}/{container['name']}")


def _has(kind: str, name: str) -> Object | None:
    return next((o for o in OBJECTS if o["kind"] == kind and o["metadata"]["name"] == name), None)


each_container = pytest.mark.parametrize(("workload", "container"), list(_containers()))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("each", OBJECTS, ids=_named)
def test_the_schemas_of_kubernetes_know_every_field(each: Object, version: str) -> None:
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("each", WORKLOADS, ids=_named)
def test_what_is_referred_to_is_there(each: Object) -> None:
    for kind, name, key in references(each):
        found = _has(kind, name)
        assert found is not None, f"there is no {kind} {name}"
        data = found.get("data") or found.get("stringData") or {}
        assert key is None or key in data, f"{kind} {name} has no {key}"


@each_container
def test_mounts_are_of_volumes_and_probes_of_ports(workload: Object, container: Object) -> None:
    claims = workload["spec"].get("volumeClaimTemplates", [])
    volumes = {v["name"] for v in _pod(workload).get("volumes", [])}
    volumes |= {c["metadata"]["name"] for c in claims}
    assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes
    ports = {p["name"] for p in container.get("ports", [])}
    probed = {node["port"] for path, node in walk(container) if path[-1:] == ("httpGet",)}
    assert probed <= ports
    if workload["kind"] != "Job":
        assert "livenessProbe" in container


@each_container
def test_containers_are_confined(workload: Object, container: Object) -> None:
    pod, own = _pod(workload), container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert set(container["resources"]) == {"requests", "limits"}
    assert pod["enableServiceLinks"] is False


@each_container
def test_our_commands_exist_and_take_their_settings(
    workload: Object, container: Object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not container["image"].startswith("tokenplane"):
        return
    program, *words = container["command"]
    if program == "tokenplane-sim":
        return  # its flags are argparse's; test_the_engine_takes_its_flags
    environment = _environment(container, tmp_path)
    for name in [n for n in os.environ if n.startswith("TOKENPLANE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if program == "tokenplane-agent":
        agent = load(AgentProcess, [])
        assert agent.nats.user == agent.etcd.user == agent.agent.worker == "sim-0"
        assert agent.nats.password == agent.etcd.password
        return
    assert program == "tokenplane" and words[0] in COMMANDS
    if words[0] != "access":
        settings_type = getattr(compose, f"{words[0].title()}Process", CommonSettings)
        settings = load(settings_type, container.get("args", []))
        assert settings.nats.user == settings.etcd.user == words[0]
        assert not settings.development_secret
        grace_s = _pod(workload)["terminationGracePeriodSeconds"]
        assert settings.drain_s < grace_s


def test_the_engine_takes_its_flags() -> None:
    from workers.sim.__main__ import parse

    engine = next(c for p in _containers() for c in [p.values[1]] if c["name"] == "engine")
    assert parse([*engine["command"][1:], *engine["args"]]).events_port == 5557


def _environment(container: Object, folder: Path) -> dict[str, str]:
    """What the kubelet would set, for the first pod of a set."""
    settings = _has("ConfigMap", "settings")
    assert settings is not None
    environment: dict[str, str] = dict(settings["data"])
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            secret = _has("Secret", source["secretKeyRef"]["name"])
            assert secret is not None
            value = secret["stringData"][source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            value = FIELDS[source["fieldRef"]["fieldPath"]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda m: environment[m.group(1)], entry["value"])
        if value == "/word":
            (folder / "word").write_text("the word of sim-0")
            value = str(folder / "word")
        environment[entry["name"]] = value
    return environment


@pytest.mark.parametrize("each", [o for o in OBJECTS if o["kind"] == "Service"], ids=_named)
def test_a_service_selects_pods_with_its_ports(each: Object) -> None:
    selected = _selected(each["spec"]["selector"])
    ports = {p["name"] for w in selected for c in _pod(w)["containers"] for p in c.get("ports", [])}
    assert selected and {p["targetPort"] for p in each["spec"]["ports"]} <= ports


@pytest.mark.parametrize("each", SERVERS, ids=_named)
def test_every_server_survives_a_drained_node(each: Object) -> None:
    labels = each["spec"]["template"]["metadata"]["labels"]
    budgets = [o for o in OBJECTS if o["kind"] == "PodDisruptionBudget"]
    assert any(b["spec"]["selector"]["matchLabels"].items() <= labels.items() for b in budgets)
    assert each["spec"]["replicas"] >= 2
    if each["kind"] == "StatefulSet":
        assert _has("Service", each["spec"]["serviceName"])


@pytest.mark.parametrize("name", ["nats", "etcd"])
def test_servers_are_clusters_of_three_that_know_each_other(name: str) -> None:
    found = _has("StatefulSet", name)
    assert found is not None and found["spec"]["replicas"] == 3
    text = (FOLDER / f"{name}.yaml").read_text() + (FOLDER / "nats-server.conf").read_text()
    for number in range(3):
        assert f"{name}-{number}.{found['spec']['serviceName']}" in text


def test_nats_runs_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [made] = [o for o in OBJECTS if re.match(r"nats-[0-9a-f]{10}$", o["metadata"]["name"])]
    for name, text in made["data"].items():
        here = text.replace("/data", str(tmp_path / "data")).replace("/var/run/nats", str(tmp_path))
        (tmp_path / name).write_text(here)
    monkeypatch.setenv("POD_NAME", "nats-0")
    for line in GIVEN["secrets.env"].splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    config = ("--config", str(tmp_path / "nats-server.conf"))
    with nats_server(tmp_path, jetstream=False, options=config) as server:
        assert server.url


def test_network_policies_begin_with_nothing_and_name_pods_and_ports_that_are_there() -> None:
    policies = [o for o in OBJECTS if o["kind"] == "NetworkPolicy"]
    nothing = [p for p in policies if not (p["spec"].keys() & {"ingress", "egress"})]
    assert [p["spec"]["podSelector"] for p in nothing] == [{}]
    ports = {
        p["name"] for w in WORKLOADS for c in _pod(w)["containers"] for p in c.get("ports", [])
    }
    for policy in policies:
        for path, node in walk(policy["spec"]):
            if path[-1:] == ("podSelector",) and node and "k8s-app" not in str(node):
                assert _selected(node["matchLabels"]), node
            if path[-1:] == ("port",) and isinstance(node, str):
                assert node in ports, node


def test_the_planner_may_scale_the_engines_that_it_is_told_of() -> None:
    planner = _has("Deployment", "planner")
    [container] = _pod(planner)["containers"] if planner else []
    told = {e["name"]: e.get("value", "") for e in container["env"]}
    workload = told["TOKENPLANE_SCALER__WORKLOADS"].split("=")[1]
    kind, name = workload.split("/")
    assert _has("StatefulSet", name) and kind == "statefulsets"
    rules = [r for o in OBJECTS if o["kind"] == "Role" for r in o["rules"]]
    assert {
        "apiGroups": ["apps"],
        "resources": [f"{kind}/scale"],
        "resourceNames": [name],
        "verbs": ["get", "patch"],
    } in rules
    accounts = {_pod(w).get("serviceAccountName") for w in WORKLOADS}
    assert accounts == {None, "planner"}
    for workload_ in WORKLOADS:
        mounted = _pod(workload_)["automountServiceAccountToken"]
        assert mounted is (workload_["metadata"]["name"] == "planner")


def test_nobody_scales_behind_the_planners_back() -> None:
    assert not [o for o in OBJECTS if o["kind"] == "HorizontalPodAutoscaler"]


def test_no_secret_is_in_the_repository() -> None:
    kept = {path.name for path in FOLDER.iterdir()}
    ignored = (FOLDER / ".gitignore").read_text().split()
    assert set(GIVEN) <= set(ignored)
    assert not [
        o
        for name in kept
        if name.endswith(".yaml") and name != "kustomization.yaml"
        for o in yaml.safe_load_all((FOLDER / name).read_text())
        if o["kind"] == "Secret"
    ]


def test_a_container_gets_the_words_that_it_needs_alone() -> None:
    for workload in WORKLOADS:
        for container in _pod(workload)["containers"]:
            assert not [e for e in container.get("envFrom", []) if "secretRef" in e]
    agent = next(p.values[1] for p in _containers() if p.values[1]["name"] == "agent")
    mount = next(m for m in agent["volumeMounts"] if m["name"] == "words")
    assert mount["subPathExpr"] == "$(POD_NAME)"


@pytest.mark.skipif(not KUSTOMIZE, reason="neither kubectl nor kustomize is installed")
def test_kustomize_makes_the_same_objects_of_it(tmp_path: Path) -> None:
    copy = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, copy)
    for name, text in GIVEN.items():
        (copy / name).write_text(text)
    built = subprocess.run(
        [*KUSTOMIZE, str(copy)], check=True, capture_output=True, text=True, timeout=60
    )
    theirs = {re.sub(r"-[a-z0-9]{10}$", "", _named(o)) for o in yaml.safe_load_all(built.stdout)}
    assert theirs == {_named(o) for o in OBJECTS}


def _selected(labels: dict[str, str]) -> list[Object]:
    return [
        w
        for w in WORKLOADS
        if labels.items() <= w["spec"]["template"]["metadata"]["labels"].items()
    ]
