"""A Vault for tests: the part of its HTTP API that Nexa Runtime uses, on a real socket, with faults to order.

Statuses and error bodies are those of HashiCorp Vault. Secrets and mounts can also be written over HTTP, so
that one test can run against this and against a real server.
"""

import asyncio
import math
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

ROOT_TOKEN = "hvs.root"
ROLE_ID = "role-of-nexa"
SECRET_ID = "secret-id-of-nexa"
JWT = "jwt-of-the-pod"
KUBERNETES_ROLE = "nexa"
SECRET_ID_PATH = "auth/approle/role/nexa-runtime/secret-id"
MAX_BAD_LOGINS = 5
LOCKOUT_S = 900.0

Body = dict[str, Any]


@dataclass(slots=True)
class _Issued:
    """A token: when it ends, when it ends for good, and what one renewal gives."""

    ends_at: float
    max_ends_at: float
    ttl_s: float


class VaultStandin:
    """Serves from construction to ``close``; use it in ``with``.

    Switches: ``is_sealed``; ``hang_s``; ``gather`` (answers wait until so many are asked for at once);
    ``html_status`` (answers are a page with this status); ``is_list`` (JSON of another shape);
    ``redirect_to`` (the URL of another host); ``is_forbidding`` (tokens lack the policy). All but the last
    hold for API paths that start with ``faulty_prefix``. Tokens that a login gives: ``token_ttl_s``,
    ``token_max_ttl_s`` (0: no end), ``is_renewable``. Seen: ``calls`` per API path, ``tokens_seen``,
    ``namespaces_seen``, ``num_lockouts``.
    """

    def __init__(
        self,
        *,
        path: str = "secret/data/tenant/{}/nexa",
        namespace: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_sealed = self.is_list = self.is_forbidding = False
        self.html_status = 0
        self.hang_s = 0.0
        self.gather = 0
        self.redirect_to = ""
        self.faulty_prefix = ""
        self.token_ttl_s, self.token_max_ttl_s, self.is_renewable = 3600.0, 0.0, True
        self.calls: Counter[str] = Counter()
        self.tokens_seen: set[str] = set()
        self.namespaces_seen: set[str] = set()
        self.num_lockouts = 0
        self._path = path
        self._namespace = namespace
        self._clock = clock
        self._mounts = {"secret", path.split("/")[0]}
        self._secrets: dict[str, list[dict[str, object] | None]] = {}
        self._tokens = {ROOT_TOKEN: _Issued(math.inf, math.inf, 0)}
        self._wrapped: Body = {}
        self._num_gathered = 0
        self._num_bad_logins = 0
        self._last_bad_login = -math.inf
        self._handlers: dict[str, Callable[[Request, Body], Response]] = {
            "auth/approle/login": self._log_in_approle,
            "auth/kubernetes/login": self._log_in_kubernetes,
            "auth/token/renew-self": self._renew,
            "auth/token/lookup-self": self._look_up,
            "sys/wrapping/lookup": self._look_up_wrapping,
            "sys/wrapping/unwrap": self._unwrap,
        }
        self._serve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_calls(self) -> int:
        """Of all paths."""
        return self.calls.total()

    @property
    def num_logins(self) -> int:
        """Tried, by AppRole or Kubernetes."""
        return self.calls["auth/approle/login"] + self.calls["auth/kubernetes/login"]

    def num_reads(self, tenant_id: str) -> int:
        """Of one tenant's secret."""
        return self.calls[self._path.format(tenant_id)]

    def put(self, tenant_id: str, values: Mapping[str, object]) -> int:
        """Write a tenant's secret; its new version."""
        versions = self._secrets.setdefault(self._path.format(tenant_id), [])
        versions.append(dict(values))
        return len(versions)

    def delete(self, tenant_id: str) -> None:
        """Soft-delete the newest version, as ``vault kv delete`` does."""
        self._secrets[self._path.format(tenant_id)][-1] = None

    def erase(self, tenant_id: str) -> None:
        """Remove all versions, as ``vault kv metadata delete`` does."""
        del self._secrets[self._path.format(tenant_id)]

    def issue_token(self, ttl_s: float = 0.0, max_ttl_s: float = 0.0) -> str:
        """A token with the policy; 0: without end."""
        token = f"hvs.{secrets.token_hex(12)}"
        now = self._clock()
        max_ends_at = now + (max_ttl_s or math.inf)
        self._tokens[token] = _Issued(min(now + (ttl_s or math.inf), max_ends_at), max_ends_at, ttl_s)
        return token

    def revoke_tokens(self) -> None:
        """End all but the root token at once."""
        self._tokens = {ROOT_TOKEN: self._tokens[ROOT_TOKEN]}

    def wrap_secret_id(self, secret_id: str = SECRET_ID, created_by: str = SECRET_ID_PATH) -> str:
        """A wrapping token that opens once."""
        token = f"hvs.wrap.{secrets.token_hex(12)}"
        self._wrapped[token] = f"{created_by}\n{secret_id}"
        return token

    def close(self) -> None:
        """Stop, also while answers hang; a second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._loop.call_soon_threadsafe(self._have_gathered.set)
            self._server.should_exit = True
            self._thread.join(10)
            assert not self._thread.is_alive()
        self._listener.close()

    def _serve(self) -> None:
        methods = ["GET", "POST", "PUT", "DELETE"]
        app = Starlette(routes=[Route("/v1/{path:path}", self._answer, methods=methods)])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        )
        is_running = threading.Event()

        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping, self._have_gathered = asyncio.Event(), asyncio.Event()
            is_running.set()
            await self._server.serve(sockets=[self._listener])

        self._thread = threading.Thread(target=lambda: asyncio.run(run()), name="vault-standin")
        self._thread.start()
        assert is_running.wait(10)

    async def _answer(self, request: Request) -> Response:
        path = request.path_params["path"]
        self.calls[path] += 1
        self.tokens_seen.add(request.headers.get("x-vault-token", ""))
        self.namespaces_seen.add(request.headers.get("x-vault-namespace", ""))
        body = await request.json() if await request.body() else {}
        if path.startswith(self.faulty_prefix):
            fault = await self._fault(path)
            if fault is not None:
                return fault
        if path == "sys/health":
            return JSONResponse({"initialized": True, "sealed": False, "standby": False})
        if request.headers.get("x-vault-namespace", "") != self._namespace:
            return _errors(403, "permission denied")
        if path in self._handlers:
            return self._handlers[path](request, body)
        return self._serve_secret(request, path, body)

    async def _fault(self, path: str) -> Response | None:
        if self.hang_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self.hang_s)
        if self.gather:
            self._num_gathered += 1
            if self._num_gathered == self.gather:
                self._have_gathered.set()
            await self._have_gathered.wait()
        if self.redirect_to:
            return RedirectResponse(f"{self.redirect_to}/v1/{path}", 307)
        if self.html_status:
            return HTMLResponse("<html>a captive portal</html>", self.html_status)
        if self.is_list:
            return JSONResponse(["another shape"])
        if self.is_sealed:
            if path == "sys/health":
                return JSONResponse({"initialized": True, "sealed": True, "standby": True}, 503)
            return _errors(503, "Vault is sealed")
        return None

    def _log_in_approle(self, request: Request, body: Body) -> Response:
        now = self._clock()
        if now - self._last_bad_login > LOCKOUT_S:
            self._num_bad_logins = 0
        if self._num_bad_logins >= MAX_BAD_LOGINS:
            return _errors(403, "permission denied")
        if (body.get("role_id"), body.get("secret_id")) == (ROLE_ID, SECRET_ID):
            self._num_bad_logins = 0
            return self._granted(self.issue_token(self.token_ttl_s, self.token_max_ttl_s))
        self._num_bad_logins += 1
        self._last_bad_login = now
        self.num_lockouts += self._num_bad_logins == MAX_BAD_LOGINS
        return _errors(400, "invalid role or secret ID")

    def _log_in_kubernetes(self, request: Request, body: Body) -> Response:
        if (body.get("role"), body.get("jwt")) == (KUBERNETES_ROLE, JWT):
            return self._granted(self.issue_token(self.token_ttl_s, self.token_max_ttl_s))
        return _errors(403, "permission denied")

    def _renew(self, request: Request, body: Body) -> Response:
        issued = self._valid(request)
        if issued is None or not self.is_renewable:
            return _errors(403, "permission denied")
        issued.ends_at = min(self._clock() + (issued.ttl_s or math.inf), issued.max_ends_at)
        return self._granted(request.headers["x-vault-token"])

    def _look_up(self, request: Request, body: Body) -> Response:
        issued = self._valid(request)
        if issued is None:
            return _errors(403, "permission denied")
        return JSONResponse(
            {"data": {"ttl": self._left_s(issued), "renewable": bool(issued.ttl_s) and self.is_renewable}}
        )

    def _look_up_wrapping(self, request: Request, body: Body) -> Response:
        wrapped = self._wrapped.get(body.get("token", ""))
        if wrapped is None:
            return _errors(400, "wrapping token is not valid or does not exist")
        created_by = wrapped.partition("\n")[0]
        return JSONResponse({"data": {"creation_path": created_by, "creation_ttl": 120}})

    def _unwrap(self, request: Request, body: Body) -> Response:
        token = body.get("token") or request.headers.get("x-vault-token", "")
        wrapped = self._wrapped.pop(token, None)
        if wrapped is None:
            return _errors(400, "wrapping token is not valid or does not exist")
        return JSONResponse({"data": {"secret_id": wrapped.partition("\n")[2], "secret_id_ttl": 0}})

    def _serve_secret(self, request: Request, path: str, body: Body) -> Response:
        if self._valid(request) is None or self.is_forbidding:
            return _errors(403, "permission denied")
        mount, _, rest = path.partition("/")
        if (mount, request.method) == ("sys", "POST"):
            self._mounts.add(rest.removeprefix("mounts/"))
            return Response(status_code=204)
        if (mount, request.method) == ("sys", "DELETE"):
            self._mounts.discard(rest.removeprefix("mounts/"))
            return Response(status_code=204)
        if mount not in self._mounts:
            return _errors(404, f'no handler for route "{path}". route entry not found.')
        return self._serve_version(request.method, path, body)

    def _serve_version(self, method: str, path: str, body: Body) -> Response:
        key = path.replace("/metadata/", "/data/", 1)
        versions = self._secrets.get(key, [])
        if method in ("POST", "PUT"):
            self._secrets[key] = [*versions, body["data"]]
            return JSONResponse({"data": _metadata(len(versions) + 1, is_deleted=False)})
        if method == "DELETE":
            if path != key:
                self._secrets.pop(key, None)
            elif versions:
                versions[-1] = None
            return Response(status_code=204)
        if not versions:
            return _errors(404)
        metadata = _metadata(len(versions), is_deleted=versions[-1] is None)
        status = 404 if versions[-1] is None else 200
        return JSONResponse({"data": {"data": versions[-1], "metadata": metadata}}, status)

    def _valid(self, request: Request) -> _Issued | None:
        issued = self._tokens.get(request.headers.get("x-vault-token", ""))
        return issued if issued is not None and self._clock() < issued.ends_at else None

    def _left_s(self, issued: _Issued) -> int:
        return 0 if issued.ends_at == math.inf else round(issued.ends_at - self._clock())

    def _granted(self, token: str) -> Response:
        issued = self._tokens[token]
        auth = {
            "client_token": token,
            "accessor": "accessor",
            "policies": ["default", "smarteros-nexa"],
            "lease_duration": self._left_s(issued),
            "renewable": self.is_renewable,
        }
        return JSONResponse({"auth": auth, "data": None})


def _errors(status: int, *messages: str) -> Response:
    return JSONResponse({"errors": list(messages)}, status)


def _metadata(version: int, *, is_deleted: bool) -> dict[str, object]:
    return {
        "version": version,
        "created_time": "2026-01-01T00:00:00Z",
        "deletion_time": "2026-01-02T00:00:00Z" if is_deleted else "",
        "destroyed": False,
    }
