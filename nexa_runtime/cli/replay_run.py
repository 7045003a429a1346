"""Sends requests again, at the distances in time that they had.

Owns the clock of a replay and how many requests are on their way at once. What is sent, ``replay_body`` says,
and ``replay_answer`` reads what comes back. ``replay`` calls it and shows what it has found.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import httpx

from nexa_runtime.cli.client import NobodyError
from nexa_runtime.cli.replay_answer import Answer, ask
from nexa_runtime.cli.replay_body import Sending, logged_body, made_up_body, skip_reason
from nexa_runtime.config import Settings
from nexa_runtime.errors import ClientError
from nexa_runtime.usage.log_line import LoggedRequest

_MAX_FLYING = 512
_MAX_FLYING_AT_ONCE = 32
"""Where nothing says when requests come: enough to keep every slot busy, and few enough not to be refused."""
_TIMEOUT_S = 3600.0
"""The server ends what takes too long; a model may have to be loaded first."""
_SAMPLE = "One day, two nights; 3 words of (plain) text: it says what it says, and the rest is made up of it."
"""Its tokens are what made-up prompts are made of."""


class Replay:
    """One replay. ``pairs`` and the rest fill while ``run`` runs, and stay if it is interrupted.

    ``speed``: how much faster than it was; 0: as fast as possible. ``model``: the one to ask instead.
    """

    def __init__(
        self, requests: Sequence[LoggedRequest], settings: Settings, *, speed: float, model: str | None
    ) -> None:
        self.pairs: list[tuple[LoggedRequest, Answer]] = []
        self.skipped: Counter[str] = Counter()
        self.num_sent = 0
        self.max_late_s = 0.0
        self._requests = requests
        self._url = settings.client.url.rstrip("/")
        self._key = settings.access.api_key
        self._speed = speed
        self._model = model
        self._flying = asyncio.Semaphore(_MAX_FLYING if speed else _MAX_FLYING_AT_ONCE)
        self._token_ids: dict[tuple[str, str], list[int] | str] = {}
        """By tenant and model: what to make prompts of, or why there is nothing."""

    async def run(self) -> None:
        """Send them all. Raises ``ClientError`` when nobody is there, or nothing can be sent."""
        async with httpx.AsyncClient(
            base_url=self._url, timeout=_TIMEOUT_S, limits=httpx.Limits(max_connections=None)
        ) as client:
            await self._check_server(client)
            numbered = [
                (number, request)
                for number, request in enumerate(self._requests)
                if not await self._skips(client, request)
            ]
            if not numbered:
                raise ClientError(self._url, f"has nothing to do: {'; '.join(self.skipped)}.")
            begun_at, first = time.monotonic(), numbered[0][1].created_at
            async with asyncio.TaskGroup() as group:
                for number, request in numbered:
                    if self._speed:
                        due = begun_at + (request.created_at - first).total_seconds() / self._speed
                        await self._wait(due)
                    await self._flying.acquire()
                    self.num_sent += 1
                    group.create_task(self._send(client, number, request))

    async def _check_server(self, client: httpx.AsyncClient) -> None:
        try:
            await client.get("/health")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NobodyError(self._url, f"gave no answer ({type(error).__name__}).") from None

    async def _wait(self, due: float) -> None:
        """Until ``due``, by the monotonic clock."""
        late_s = time.monotonic() - due
        if late_s < 0:
            await asyncio.sleep(-late_s)
        self.max_late_s = max(self.max_late_s, late_s)

    async def _send(self, client: httpx.AsyncClient, number: int, request: LoggedRequest) -> None:
        try:
            sending = self._sending(number, request)
            self.pairs.append((request, await ask(client, sending, self._headers(request.tenant_id))))
        finally:
            self._flying.release()

    def _sending(self, number: int, request: LoggedRequest) -> Sending:
        if request.body is not None:
            return logged_body(request, request.body, self._model)
        tenant_id, model = self._key_of(request)
        token_ids = self._token_ids[tenant_id, model]
        assert not isinstance(token_ids, str)
        return made_up_body(request, model, token_ids, number)

    async def _skips(self, client: httpx.AsyncClient, request: LoggedRequest) -> bool:
        """Whether a request is not sent, which is counted with the reason."""
        reason = skip_reason(request)
        if reason is None and request.body is None:
            key = self._key_of(request)
            if key not in self._token_ids:
                self._token_ids[key] = await self._ask_token_ids(client, *key)
            if isinstance(found := self._token_ids[key], str):
                reason = found
        if reason is not None:
            self.skipped[reason] += 1
        return reason is not None

    async def _ask_token_ids(self, client: httpx.AsyncClient, tenant_id: str, model: str) -> list[int] | str:
        """Some ids of plain text; or why the tenant cannot ask that model."""
        body = {"content": _SAMPLE, "parse_special": False, "model": model}
        try:
            response = await client.post("/tokenize", json=body, headers=self._headers(tenant_id))
            answer = response.json()
            if response.status_code == 200:
                return sorted(set(answer["tokens"]))
            message = str(answer["error"]["message"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            raise NobodyError(self._url, "is no server of ours: it does not tokenize.") from None
        if response.status_code == 401:
            raise ClientError(self._url, f"says: {message}")
        return message.rstrip(".")

    def _key_of(self, request: LoggedRequest) -> tuple[str, str]:
        return request.tenant_id, self._model or request.model

    def _headers(self, tenant_id: str) -> dict[str, str]:
        headers = {"x-tenant-id": tenant_id}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.get_secret_value()}"
        return headers
