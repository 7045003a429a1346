"""Fixtures: a client of OpenAI's package; and around all clients, that none of them looks beyond this machine
or finds settings in the environment.
"""

import os
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support import LiveServer

_SETTINGS = ("OPENAI_", "ANTHROPIC_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_", "TIKTOKEN_")
_HERE = frozenset({None, "", "localhost", "127.0.0.1", "::1"})


@pytest.fixture(scope="module", autouse=True)
def only_this_machine() -> Iterator[None]:
    """Every look-up and connection that would leave this machine is refused, and fails the module at its
    end, for clients swallow such errors.
    """
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo
    outside: list[object] = []

    def check(host: object) -> None:
        if host not in _HERE:
            outside.append(host)
            raise OSError(f"{host} is not this machine.")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        connect(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host.decode() if isinstance(host, bytes) else host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
            patch.delenv(name)
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it is fetched when litellm is imported
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield
    assert outside == []


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    """OpenAI's, which sends each request once."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made
