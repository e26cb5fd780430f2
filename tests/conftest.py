"""What every test stands on: which event loop, and where shared measurements lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run on asyncio; those of services that must also run in virtual time ask for
    trio as well: `@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])`."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real traces and measurements, which is not part of the project."""
    folder = Path(os.environ.get("TOKENPLANE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no measured data: {folder} is not there (set TOKENPLANE_DATA)")
    return folder
