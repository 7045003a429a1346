"""A PostgreSQL for the session, and an empty database for each test."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.usage.postgres_server import PostgresServer, find_binaries

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One that runs; a test that stops it starts it again."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL here (Debian: postgresql)")
    server = PostgresServer(binaries)
    yield server
    server.remove()


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The name of a new one. What it is made of need not be read again after a crash."""
    name = f"usage_{next(_NUMBERS)}"
    postgres.execute(f"CREATE DATABASE {name}")
    postgres.execute("CHECKPOINT")
    return name
