"""`tokenplane doctor` beside a cluster that `tokenplane up` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("doctor"),
]


def _found(cluster: UpCluster, *words: str, status: int) -> set[str]:
    said = cluster.tokenplane("doctor", "--cluster", "test", "--json", *words, status=status)
    return {each["code"] for each in json.loads(said.stdout)["findings"]}


def test_a_healthy_cluster_and_one_whose_secret_is_another(tmp_path: Path) -> None:
    with up(tmp_path, "--engines", "1", "--speed", "10") as cluster:
        assert _found(cluster, status=0) <= {"disk-low"}
        other = tmp_path / "other"
        other.write_text("another secret than theirs")
        assert "secret-mismatch" in _found(cluster, "--secret_file", str(other), status=1)
