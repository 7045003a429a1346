"""A hub for tests: the part of Hugging Face's HTTP API that pulls use, on real sockets, with faults to order.

Paths, headers and error codes are those of huggingface.co, so that the real huggingface_hub client can be
pointed at it (``HF_ENDPOINT``). Bodies go over bare sockets: resets, stalls and torn answers are real ones.
``hub_models`` fills one with the models that tests pull.
"""

import hashlib
import json
import math
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

PIECE_BYTES = 8192
HUB_TOKEN = "hf_standin"

_API = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<kind>revision|tree|paths-info)/(?P<revision>[^/]+))?"
)
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_SIGNED = re.compile(r"/signed/(?P<sha256>[0-9a-f]{64})")

FaultKind = Literal[
    "drop", "reset", "stall", "drip", "short", "flip", "ignore_range", "no_range", "other_range", "encoded",
    "html", "status",
]  # fmt: skip


@dataclass(slots=True)
class Fault:
    """Goes wrong ``times`` times, where the request's path contains ``where``.

    drop, reset, stall, drip (a byte now and then): after ``at`` bytes of an answer. short: a whole answer
    that is only ``at`` bytes long. flip: the byte at ``at`` of the file. ignore_range: 200 instead of 206.
    no_range: 416 to any range.
    other_range: another part than was asked for. encoded: a Content-Encoding. html: a page with status 200.
    status: ``status`` and, where given, ``retry_after``.
    """

    kind: FaultKind
    where: str = "/"
    at: int = 0
    times: float = 1
    status: int = 503
    retry_after: str = ""


@dataclass(slots=True)
class Repo:
    """``commits``: commit → path → content; ``names``: branch or tag → commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False


class HubStandin:
    """Serves from construction to ``close``; use it in ``with``.

    Switches: ``faults`` (see ``Fault``; ``order`` adds one); ``is_redirecting`` (files come by 302 and a
    signed URL from ``storage_url``, another origin); ``signature_uses`` (how often a signed URL opens; then
    403); ``bytes_per_s`` (0: no limit); ``Repo.is_gated``, ``Repo.is_private``. Seen: ``requests`` per method
    and path, ``bytes_sent`` per sha256 of a file, ``ranges``, ``tokens_seen``, ``storage_tokens_seen``.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.is_redirecting = False
        self.signature_uses = math.inf
        self.bytes_per_s = 0
        self.requests: Counter[str] = Counter()
        self.bytes_sent: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.tokens_seen: set[str] = set()
        self.storage_tokens_seen: set[str] = set()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._blobs: dict[str, bytes] = {}
        self._signatures: Counter[str] = Counter()
        self._servers = [_Server(self, is_storage=False), _Server(self, is_storage=True)]
        self.url, self.storage_url = (server.url for server in self._servers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, also while answers stall."""
        self.closing.set()
        for server in self._servers:
            server.stop()

    def put(self, repo: str, files: Mapping[str, bytes], *, tag: str | None = None) -> str:
        """A new commit that ``main``, and the tag, point to; it holds these files only."""
        at = self.repos.setdefault(repo, Repo())
        seed = f"{repo} {len(at.commits)} {sorted((path, _sha256(data)) for path, data in files.items())}"
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        at.commits[commit] = dict(files)
        at.names["main"] = commit
        if tag:
            at.names[tag] = commit
        self._blobs |= {_sha256(data): data for data in files.values()}
        return commit

    def order(self, kind: FaultKind, **options: Any) -> Fault:
        """One more fault."""
        fault = Fault(kind, **options)
        self.faults.append(fault)
        return fault

    def taken(self, path: str) -> list[Fault]:
        """The faults that one request meets; each is then used up once more."""
        with self.lock:
            met = [fault for fault in self.faults if fault.times > 0 and fault.where in path]
            for fault in met:
                fault.times -= 1
            return met

    def sign(self, sha256: str) -> str:
        """A new signed URL of the storage."""
        with self.lock:
            signature = f"sig-{len(self._signatures)}"
            self._signatures[signature] = 0
        return f"{self.storage_url}/signed/{sha256}?X-Signature={signature}"

    def opens(self, signature: str) -> bool:
        """Whether a signed URL is still good; it was used once more."""
        with self.lock:
            self._signatures[signature] += 1
            return self._signatures[signature] <= self.signature_uses

    def blob(self, sha256: str) -> bytes:
        """A file by its hash."""
        return self._blobs[sha256]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, standin: HubStandin, *, is_storage: bool) -> None:
        self.standin = standin
        self.is_storage = is_storage
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="hub-standin")
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join(10)
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Otherwise the kernel holds back a small answer after its headers for 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

    def _answer(self, body: Mapping[str, list[str]] | None = None) -> None:
        url = urlsplit(self.path)
        path, standin = unquote(url.path), self.server.standin
        with standin.lock:
            standin.requests[f"{self.command} {path}"] += 1
            seen = standin.storage_tokens_seen if self.server.is_storage else standin.tokens_seen
            seen.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
        faults = standin.taken(path)
        for fault in faults:
            if fault.kind == "status":
                return self._status(fault.status, retry_after=fault.retry_after)
            if fault.kind == "html":
                return self._send(200, b"<html>a captive portal</html>", {"Content-Type": "text/html"})
        if self.server.is_storage:
            return self._answer_signed(url.path, parse_qs(url.query), faults)
        if match := _API.fullmatch(url.path):
            return self._answer_api(match, body)
        if match := _RESOLVE.fullmatch(url.path):
            return self._answer_resolve(match, faults)
        return self._status(404)

    def _answer_api(self, match: re.Match[str], body: Mapping[str, list[str]] | None) -> None:
        found = self._find(match["repo"], match["revision"], is_file=False)
        if found is None:
            return
        commit, files = found
        entries = [_entry(path, data) for path, data in sorted(files.items())]
        if match["kind"] == "tree":
            return self._json(entries)
        if match["kind"] == "paths-info":
            return self._json([entry for entry in entries if entry["path"] in (body or {})["paths"]])
        siblings = [{"rfilename": e["path"], "size": e["size"], "lfs": e["lfs"]} for e in entries]
        if "blobs" not in parse_qs(urlsplit(self.path).query):
            siblings = [{"rfilename": entry["path"]} for entry in entries]
        self._json({"id": match["repo"], "modelId": match["repo"], "sha": commit, "siblings": siblings})

    def _answer_resolve(self, match: re.Match[str], faults: list[Fault]) -> None:
        found = self._find(match["repo"], match["revision"], is_file=True)
        if found is None:
            return
        commit, files = found
        data = files.get(unquote(match["path"]))
        if data is None:
            return self._status(404, code="EntryNotFound")
        sha256 = _sha256(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256}"'}
        if not self.server.standin.is_redirecting:
            return self._send_file(sha256, data, headers, faults)
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        self._send(302, b"", headers | {"Location": self.server.standin.sign(sha256)})

    def _answer_signed(self, path: str, query: Mapping[str, list[str]], faults: list[Fault]) -> None:
        match = _SIGNED.fullmatch(path)
        if match is None or not self.server.standin.opens(query.get("X-Signature", [""])[0]):
            return self._status(403)
        self._send_file(match["sha256"], self.server.standin.blob(match["sha256"]), {}, faults)

    def _find(self, name: str, revision: str | None, *, is_file: bool) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, or nothing after an answer that says why."""
        has_token = self.headers.get("Authorization") == f"Bearer {HUB_TOKEN}"
        repo = self.server.standin.repos.get(name)
        if repo is None or (repo.is_private and not has_token):
            self._status(404 if has_token else 401, code="RepoNotFound")
            return None
        # Everybody may read what a gated repository lists, as on huggingface.co.
        if repo.is_gated and is_file and not has_token:
            self._status(403, code="GatedRepo")
            return None
        wanted = unquote(revision or "main")
        commit = repo.names.get(wanted, wanted)
        if commit not in repo.commits:
            self._status(404, code="RevisionNotFound")
            return None
        return commit, repo.commits[commit]

    def _send_file(self, sha256: str, data: bytes, headers: dict[str, str], faults: list[Fault]) -> None:
        kinds = {fault.kind for fault in faults}
        start, asked = 0, self.headers.get("Range")
        if asked is not None:
            with self.server.standin.lock:
                self.server.standin.ranges.append(asked)
            start = 0 if "ignore_range" in kinds else int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(data) or "no_range" in kinds:
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        body = bytearray(data[start:])
        for fault in faults:
            if fault.kind == "flip" and 0 <= fault.at - start < len(body):
                body[fault.at - start] ^= 0x40
            if fault.kind == "short":
                del body[fault.at :]
            if fault.kind == "encoded":
                headers["Content-Encoding"] = "gzip"
        is_part = asked is not None and "ignore_range" not in kinds
        if is_part:
            first = start + ("other_range" in kinds)
            headers["Content-Range"] = f"bytes {first}-{start + len(body) - 1}/{len(data)}"
        self._head(206 if is_part else 200, headers | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self._send_pieces(sha256, bytes(body), faults)

    def _send_pieces(self, sha256: str, body: bytes, faults: list[Fault]) -> None:
        standin = self.server.standin
        ends = {fault.at: fault.kind for fault in faults if fault.kind in ("drop", "reset", "stall", "drip")}
        end = min(ends, default=len(body))
        size = PIECE_BYTES if standin.bytes_per_s else 1 << 16
        with suppress(OSError):
            for at in range(0, min(end, len(body)), size):
                piece = body[at : min(at + size, end)]
                self._count(sha256, len(piece))  # first: its reader may be ready before this thread goes on
                try:
                    self.wfile.write(piece)
                except OSError:
                    self._count(sha256, -len(piece))
                    raise
                if standin.bytes_per_s:
                    time.sleep(len(piece) / standin.bytes_per_s)
        if end in ends:
            self._tear(ends[end], sha256, body[end:])

    def _count(self, sha256: str, num_bytes: int) -> None:
        with self.server.standin.lock:
            self.server.standin.bytes_sent[sha256] += num_bytes

    def _tear(self, kind: FaultKind, sha256: str, rest: bytes) -> None:
        standin = self.server.standin
        self.close_connection = True
        if kind == "stall":
            standin.closing.wait(30)
        if kind == "drip":
            with suppress(OSError):
                for at in range(len(rest)):
                    if standin.closing.wait(0.01):
                        break
                    self.wfile.write(rest[at : at + 1])
                    self._count(sha256, 1)
        if kind == "reset":
            # What the client has not read yet would be lost with the connection.
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A shutdown, as the server makes one after this, would send a FIN first.
            self.connection.close()

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _status(self, status: int, *, code: str = "", retry_after: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(
            status, b'{"error":"refused"}', headers | ({"Retry-After": retry_after} if retry_after else {})
        )

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40, "lfs": None}
    if path.endswith(".gguf"):
        # On the tree's pages the hub calls it oid, everywhere else sha256.
        sha256 = _sha256(data)
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 134}
    return entry


@cache
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
