"""What is asked of etcd: leases, and a key that lives as long as its lease.

Owns the way there, over the HTTP gateway of etcd 3.4 and newer: several addresses of one cluster, of which
the one that answered last is asked first, and a user's token. It never decides what is registered and never
shows a password. ``discovery`` calls it, on the event loop.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from nexa_runtime.errors import DiscoveryError

TIMEOUT_S = 3.0
"""For one answer of one address."""


@dataclass(frozen=True, slots=True)
class Address:
    """One member of the cluster. ``url``: without user and password, for logs too."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Of URLs with commas, which may hold a user and a password."""
    return tuple(_parse_address(url.strip()) for url in text.split(",") if url.strip())


def _parse_address(url: str) -> Address:
    parts = urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"))
    return Address(bare.geturl(), unquote(parts.username or ""), unquote(parts.password or ""))


class Etcd:
    """Each call raises ``DiscoveryError`` when no address gives an answer that helps."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = list(addresses)
        """The one that answered last comes first."""
        self._tokens: dict[Address, str] = {}
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S)

    @property
    def urls(self) -> list[str]:
        """Where it is asked, the first one first."""
        return [address.url for address in self._addresses]

    async def grant(self, ttl_s: int) -> str:
        """A new lease; what hangs on it is gone ``ttl_s`` seconds after it was kept alive last."""
        return str(await self._ask("lease/grant", {"TTL": ttl_s}, "ID"))

    async def put(self, key: str, value: bytes, lease: str) -> None:
        """Set a key that hangs on a lease."""
        body = {"key": _base64(key.encode()), "value": _base64(value), "lease": lease}
        await self._ask("kv/put", body, "header")

    async def keep_alive(self, lease: str) -> bool:
        """Let a lease begin anew; False if there is none any more."""
        return "TTL" in await self._ask("lease/keepalive", {"ID": lease}, "result")

    async def revoke(self, lease: str) -> None:
        """End a lease, and all that hangs on it."""
        if await self.keep_alive(lease):
            await self._ask("lease/revoke", {"ID": lease}, "header")

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def _ask(self, path: str, body: Mapping[str, object], wanted: str) -> Any:
        """What is ``wanted`` of the answer, from the first address that gives it."""
        problems = []
        for address in list(self._addresses):
            try:
                response = await self._post(address, path, body)
                if response.status_code == 401 and address in self._tokens:
                    del self._tokens[address]  # they expire
                    response = await self._post(address, path, body)
                found = _found(address, response, wanted)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problems.append(f"{address.url} gives no answer ({type(error).__name__})")
            except DiscoveryError as error:
                problems.append(str(error))
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return found
        raise DiscoveryError("; ".join(problems))

    async def _post(self, address: Address, path: str, body: Mapping[str, object]) -> httpx.Response:
        headers = {}
        if address.user:
            headers["Authorization"] = self._tokens.get(address) or await self._log_in(address)
        return await self._http.post(f"{address.url}/v3/{path}", json=body, headers=headers)

    async def _log_in(self, address: Address) -> str:
        body = {"name": address.user, "password": address.password}
        response = await self._http.post(f"{address.url}/v3/auth/authenticate", json=body)
        token = self._tokens[address] = str(_found(address, response, "token"))
        return token


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _found(address: Address, response: httpx.Response, wanted: str) -> Any:
    """What is ``wanted`` of an answer. Raises ``DiscoveryError`` with what etcd says instead."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DiscoveryError(f"{address.url} answers {response.status_code}, and not as etcd does")
    if not response.is_success or wanted not in answer:
        said = str(answer.get("message", f"no {wanted}"))[:200]
        raise DiscoveryError(f"{address.url} answers {response.status_code}: {said}")
    return answer[wanted]
