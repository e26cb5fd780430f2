"""`make compose-test`: docker-compose.yml on a real Docker engine. No part of `make test`, as it
needs one, and images; nothing here is collected without TOKENPLANE_COMPOSE."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.cluster import ComposeCluster, running

collect_ignore_glob = [] if os.environ.get("TOKENPLANE_COMPOSE") else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[ComposeCluster]:
    with running() as cluster:
        yield cluster
