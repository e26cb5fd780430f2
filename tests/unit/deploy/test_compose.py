"""docker-compose.yml says what it must; `make compose-test` brings it up for real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from controlplane.access.nats import password_variable, users_of
from controlplane.cli.main import COMMANDS
from proto.access import Role
from tests.support.nats_server import nats_server

TOP = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, each in SERVICES.items() if "build" in each)
ROLES = {"worker": "agent"}
ONCE = {"access"}


def _each(name: str) -> dict[str, Any]:
    return SERVICES[name]


def _environment(name: str) -> dict[str, str]:
    return cast(dict[str, str], _each(name)["environment"])


def test_every_user_has_a_password_at_nats_and_etcd() -> None:
    wanted = {password_variable(user) for user in users_of(())}
    assert set(_environment("nats")) == wanted | {"SYS_PASSWORD"}
    assert wanted | {"ETCD_ROOT_PASSWORD"} <= set(_environment("access"))


def test_nats_runs_by_its_configuration_whatever_its_container_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (TOP / "deploy" / "nats").glob("*.conf"):
        here = file.read_text().replace("/data", str(tmp_path / "data"))
        (tmp_path / file.name).write_text(re.sub(r"http_port: \d+", "http_port: -1", here))
    for variable, word in _environment("nats").items():
        monkeypatch.setenv(variable, word.partition(":-")[2].removesuffix("}"))
    # One container id in 250 is a number to NATS, which takes it for one, and no name.
    monkeypatch.setenv("HOSTNAME", "463749102885")
    config = ("--config", str(tmp_path / "nats-server.conf"))
    with nats_server(tmp_path, jetstream=False, options=config) as server:
        assert server.url


@pytest.mark.parametrize("name", sorted(set(OURS) - ONCE))
def test_a_service_is_its_own_user(name: str) -> None:
    user, environment = ROLES.get(name, name), _environment(name)
    assert user in {role.value for role in Role}
    assert environment["TOKENPLANE_NATS__USER"] == environment["TOKENPLANE_ETCD__USER"] == user
    for word in ("TOKENPLANE_NATS__PASSWORD", "TOKENPLANE_ETCD__PASSWORD"):
        assert environment[word].startswith(f"${{{password_variable(user)}:-")
    others = {password_variable(each) for each in users_of(())} - {password_variable(user)}
    assert not any(other in str(environment) for other in others)


@pytest.mark.parametrize("name", OURS)
def test_our_processes_are_confined(name: str) -> None:
    service = _each(name)
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["command"][0] == "worker" or service["command"][1] in COMMANDS


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_bounded_and_ends_soon(name: str) -> None:
    service = _each(name)
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory"}
    assert service["init"] is True and service["stop_grace_period"] == "5s"
    assert not service["image"].endswith(":latest")


@pytest.mark.parametrize("name", sorted(set(OURS) - ONCE | {"nats", "etcd"}))
def test_every_server_is_probed_as_old_engines_can(name: str) -> None:
    check = _each(name)["healthcheck"]
    assert check["test"] and "start_interval" not in check


def test_published_ports_are_for_this_machine() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_example_settings_name_every_variable() -> None:
    example = (TOP / ".env.example").read_text()
    known = set(re.findall(r"^#?([A-Z_]+)=|\b([A-Z_]+)= ?", example, flags=re.MULTILINE))
    names = {name for pair in known for name in pair}
    used = set(re.findall(r"\$\{([A-Z_]+):-", (TOP / "docker-compose.yml").read_text()))
    assert used <= names | {"TOKENPLANE_IMAGE"}


def test_the_dockerfile_needs_no_new_engine() -> None:
    text = (TOP / "deploy/Dockerfile").read_text()
    assert "--link" not in text.replace("`COPY --link`", "") and "<<" not in text
    assert re.search(r"^USER 10001:10001$", text, flags=re.MULTILINE)
