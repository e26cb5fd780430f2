"""Settings: precedence of the four sources, texts of errors, and secrets that stay secret."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr, ValidationError

from controlplane.runtime.settings import (
    DEVELOPMENT_SECRET,
    CommonSettings,
    Group,
    SettingsError,
    is_loopback,
    load,
)

SECRET = "correct-horse-battery"


class RouterSettings(Group):
    """A service's own group."""

    policy: Literal["kv", "slo", "random"] = Field("kv", description="how to choose")
    temperature: float = Field(0.0, ge=0)
    verbose: bool = False
    labels: dict[str, str] = Field({})


class RouterProcess(CommonSettings):
    """Runs a router."""

    router: RouterSettings = RouterSettings()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a cluster of their own."""
    for name in os.environ:
        if name.startswith("TOKENPLANE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], str]:
    """Writes a settings file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "tokenplane.toml"
        path.write_text(text)
        return str(path)

    return write


def fails(*argv: str) -> str:
    """The text of the error these flags end in."""
    with pytest.raises(SettingsError) as caught:
        load(RouterProcess, argv, prog="tokenplane router")
    text = str(caught.value)
    assert len(text.splitlines()) <= 24
    return text


def test_defaults_are_for_one_machine() -> None:
    settings = load(RouterProcess, [])
    assert settings.cluster == "local"
    assert settings.nats.servers == ("nats://127.0.0.1:4222",)
    assert settings.etcd.endpoints == ("127.0.0.1:2379",)
    assert settings.router.policy == "kv"
    assert settings.development_secret


def test_each_source_wins_over_the_next(
    monkeypatch: pytest.MonkeyPatch, toml: Callable[[str], str]
) -> None:
    file = toml(
        'cluster = "file"\ndrain_s = 1\n[router]\npolicy = "slo"\ntemperature = 1\nverbose = true\n'
    )
    monkeypatch.setenv("TOKENPLANE_CLUSTER", "environment")
    monkeypatch.setenv("TOKENPLANE_ROUTER__POLICY", "kv")
    monkeypatch.setenv("TOKENPLANE_ROUTER__TEMPERATURE", "2")
    settings = load(RouterProcess, ["--config", file, "--router.policy", "random"])
    assert settings.router.policy == "random"  # flag over environment and file
    assert settings.router.temperature == 2  # environment over file
    assert settings.cluster == "environment"
    assert settings.router.verbose is True  # file over default
    assert settings.drain_s == 1
    assert settings.start_s == 60  # default


def test_the_environment_can_name_the_file(
    monkeypatch: pytest.MonkeyPatch, toml: Callable[[str], str]
) -> None:
    monkeypatch.setenv("TOKENPLANE_CONFIG", toml('cluster = "file"'))
    assert load(RouterProcess, []).cluster == "file"


@pytest.mark.parametrize(
    "value",
    ["nats://127.0.0.1:1,nats://127.0.0.1:2", '["nats://127.0.0.1:1", "nats://127.0.0.1:2"]'],
)
def test_lists_are_read_as_json_or_with_commas(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    both = ("nats://127.0.0.1:1", "nats://127.0.0.1:2")
    assert load(RouterProcess, ["--nats.servers", value]).nats.servers == both
    monkeypatch.setenv("TOKENPLANE_NATS__SERVERS", value)
    assert load(RouterProcess, []).nats.servers == both


@pytest.mark.parametrize("value", ["zone=1,rack=2", '{"zone": "1", "rack": "2"}'])
def test_mappings_are_read_as_json_or_with_commas(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    both = {"zone": "1", "rack": "2"}
    assert load(RouterProcess, ["--router.labels", value]).router.labels == both
    monkeypatch.setenv("TOKENPLANE_ROUTER__LABELS", value)
    assert load(RouterProcess, []).router.labels == both


def test_a_flag_given_twice_makes_a_list() -> None:
    argv = ["--etcd.endpoints", "127.0.0.1:1", "--etcd.endpoints", "127.0.0.1:2"]
    assert load(RouterProcess, argv).etcd.endpoints == ("127.0.0.1:1", "127.0.0.1:2")


def test_a_flag_that_is_yes_or_no_needs_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(RouterProcess, ["--router.verbose"]).router.verbose
    monkeypatch.setenv("TOKENPLANE_ROUTER__VERBOSE", "true")
    assert not load(RouterProcess, ["--no-router.verbose"]).router.verbose


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPLANE_TELEMETRY__OTLP_ENDPOINT", "")
    assert load(RouterProcess, []).telemetry.otlp_endpoint is None


def test_code_reads_nothing_but_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPLANE_CLUSTER", "environment")
    assert RouterProcess(drain_s=3).cluster == "local"


def test_settings_cannot_be_changed() -> None:
    settings = RouterProcess()
    with pytest.raises(ValidationError):
        settings.cluster = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.router.policy = "slo"  # type: ignore[misc]


# --- What is wrong, from where, and what to do --------------------------------------------------


def test_an_error_names_setting_source_and_value(
    monkeypatch: pytest.MonkeyPatch, toml: Callable[[str], str]
) -> None:
    monkeypatch.setenv("TOKENPLANE_ADMIN__PORT", "x")
    file = toml("[router]\ntemperature = -1\n")
    text = fails("--config", file, "--router.policy", "best")
    assert "3 bad settings" in text
    assert "admin.port = 'x' (environment TOKENPLANE_ADMIN__PORT)" in text
    assert f"router.temperature = -1 (file {file}: router.temperature)" in text
    assert "router.policy = 'best' (flag --router.policy)" in text
    assert "Input should be 'kv', 'slo' or 'random'" in text
    assert "tokenplane router --help" in text


def test_a_bad_cluster_name_is_refused() -> None:
    assert "cluster 'a.b' must be 1 to 128 letters" in fails("--cluster", "a.b")


def test_unknown_flags_are_refused() -> None:
    assert "unknown flag --router.polic\n" in fails("--router.polic", "kv")
    assert "every setting needs a flag before it" in fails("kv")


def test_unknown_variables_of_a_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPLANE_NATS__SERVER", "x")
    monkeypatch.setenv("TOKENPLANE_ETDC__USER", "x")
    text = fails()
    assert "nats.server (environment TOKENPLANE_NATS__SERVER)" in text
    assert "did you mean nats.servers?" in text
    assert "etdc (environment TOKENPLANE_ETDC)" in text
    assert "did you mean etcd?" in text


def test_unknown_keys_of_the_file_are_refused(toml: Callable[[str], str]) -> None:
    text = fails("--config", toml("clutser = 'x'\n"))
    assert "clutser (file" in text
    assert "did you mean cluster?" in text


def test_other_services_and_other_tools_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, toml: Callable[[str], str]
) -> None:
    monkeypatch.setenv("TOKENPLANE_GATEWAY__PORT", "8000")
    monkeypatch.setenv("TOKENPLANE_NATS_PORT", "tcp://10.0.0.1:4222")  # as Kubernetes has it
    monkeypatch.setenv("TOKENPLANE_HOME", "/somewhere")
    settings = load(
        RouterProcess, ["--config", toml("[gateway]\nport = 1\n[router]\nverbose=true")]
    )
    assert settings.router.verbose


def test_a_file_that_cannot_be_read_is_named(toml: Callable[[str], str]) -> None:
    assert "cannot read the settings file /nowhere.toml" in fails("--config", "/nowhere.toml")
    assert "is not valid TOML" in fails("--config", toml("cluster = \n"))


def test_a_variable_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPLANE_NATS", '{"password": "hunter2"')
    monkeypatch.setenv("TOKENPLANE_ROUTER__LABELS", "zone")
    text = fails()
    assert "nats (environment TOKENPLANE_NATS)" in text
    assert "hunter2" not in text
    assert "router.labels = 'zone' (environment TOKENPLANE_ROUTER__LABELS)" in text


def test_many_errors_fit_one_screen(toml: Callable[[str], str]) -> None:
    text = fails("--config", toml("\n".join(f"wrong_{i} = 1" for i in range(40))))
    assert "40 bad settings" in text
    assert "... and 34 more" in text


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(RouterProcess, ["--help"], prog="tokenplane router")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: tokenplane router" in text
    assert "--router.policy" in text
    assert "how to choose" in text
    assert DEVELOPMENT_SECRET not in text


# --- The cluster secret -------------------------------------------------------------------------


def test_the_secret_comes_from_environment_or_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    from_file = load(RouterProcess, ["--secret_file", str(file)])
    assert from_file.secret_bytes == SECRET.encode()
    assert not from_file.development_secret
    monkeypatch.setenv("TOKENPLANE_SECRET", SECRET)
    assert load(RouterProcess, []).secret_bytes == SECRET.encode()
    assert "both secret and secret_file are set" in fails("--secret_file", str(file))


def test_a_secret_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert "cannot read secret_file /nowhere" in fails("--secret_file", "/nowhere")
    short, binary = tmp_path / "short", tmp_path / "binary"
    short.write_text("hunter2")
    binary.write_bytes(b"\xff\xfe")
    text = fails("--secret_file", str(short))
    assert f"secret (file {short}: secret)" in text
    assert "at least 16 characters" in text
    assert "is not text" in fails("--secret_file", str(binary))


@pytest.mark.parametrize("remote", ["--nats.servers=nats://10.0.0.1:4222", "--etcd.endpoints=h:1"])
def test_the_development_secret_stays_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, remote: str
) -> None:
    assert "set TOKENPLANE_SECRET" in fails(remote)
    monkeypatch.setenv("TOKENPLANE_SECRET", DEVELOPMENT_SECRET)
    assert "set TOKENPLANE_SECRET" in fails(remote)
    monkeypatch.setenv("TOKENPLANE_SECRET", SECRET)
    assert load(RouterProcess, [remote])


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RouterProcess(secret=SecretStr(SECRET))
    for text in (
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
    ):
        assert SECRET not in text
    assert "hunter2" not in fails("--nats.servers", "nats://me:hunter2@10.0.0.1:4222")
    assert "hunter2" not in fails("--secret", "hunter2")
    assert "hunter2" not in fails("--secrett", "hunter2")
    assert "hunter2" not in fails("--secrett=hunter2")
    assert "hunter2" not in fails("hunter2")
    monkeypatch.setenv("TOKENPLANE_NATS__PASSWORDD", "hunter2")
    assert "hunter2" not in fails()
    with pytest.raises(ValidationError) as caught:
        RouterProcess(secret=SecretStr("hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "address", "what"),
    [
        ("--nats.servers", "me:hunter2@127.0.0.1:4222", "a NATS server is nats://host:port"),
        ("--nats.servers", "nats://me:a/hunter2@127.0.0.1", "a NATS server is nats://host:port"),
        ("--nats.servers", '["nats://me:hunter2@127.0.0.1", 3]', "valid string"),
        (
            "--nats.servers",
            '["nats://me:hunter2@127.0.0.1", "x"]',
            "a NATS server is nats://host:port",
        ),
        ("--nats.servers", "nats://me:hunter2,5@127.0.0.1", "a NATS server is nats://host:port"),
        ("--etcd.endpoints", "me:hunter2@127.0.0.1:2379", "have settings of their own"),
    ],
)
def test_a_bad_address_is_refused_without_its_password(flag: str, address: str, what: str) -> None:
    text = fails(flag, address)
    assert f"{flag.removeprefix('--')} (flag {flag})" in text
    assert what in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1:2379", True),
        ("nats://127.0.0.2:4222", True),
        ("nats://user:password@127.0.0.1:4222", True),
        ("http://localhost:2379", True),
        ("[::1]:2379", True),
        ("10.0.0.1:2379", False),
        ("nats://nats:4222", False),
        ("127.0.0.1.example.com:2379", False),
    ],
)
def test_loopback(address: str, here: bool) -> None:
    assert is_loopback(address) is here


def test_passwords_come_from_files_as_well(tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text("said by a file\n")
    settings = load(RouterProcess, ["--nats.password_file", str(file)])
    assert settings.nats.password == SecretStr("said by a file")
    assert settings.etcd.password is None
    both = fails("--etcd.password_file", str(file), "--etcd.password", "another")
    assert "both etcd.password and password_file are set" in both and "another" not in both
    assert "cannot read password_file /nowhere" in fails("--nats.password_file", "/nowhere")
