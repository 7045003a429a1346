"""Fixtures: a hub with models, a store of its own, and waits that take no time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_runtime.store.store import ModelStore
from tests.hub_models import SHA256, Waits, demo_hub
from tests.hub_standin import HubStandin


@pytest.fixture
def standin() -> Iterator[HubStandin]:
    with demo_hub() as serving:
        yield serving


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "partial" / f"{SHA256}.partial"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", tmp_path / "state")
