"""Supabase's REST endpoint with one table, on loopback: it keeps the rows that are inserted.

Owns the table ``ai_runtime_logs`` as ``nexa-runtime usage init`` makes it, and refuses what PostgREST would:
a wrong key, another table, a column that is not there, a null where none may be. It never reads a row back.
``n8n`` starts it, for the real one cannot be reached from a test.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nexa_runtime.usage.table import COLUMNS, TABLE

_NOT_NULL = ("tenant_id", "model")


@dataclass
class Supabase:
    """``is_away``: each insert is answered with 503 then."""

    url: str
    key: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    is_away: bool = False

    def insert(self, path: str, key: str | None, rows: list[dict[str, Any]]) -> tuple[int, object]:
        """Status and body."""
        if self.is_away:
            return 503, {"message": "The database is away."}
        if key != self.key:
            return 401, {"message": "Invalid API key"}
        if path != f"/rest/v1/{TABLE}":
            return 404, {"code": "PGRST205", "message": f"Could not find the table at {path}"}
        for row in rows:
            if unknown := set(row) - set(COLUMNS):
                return 400, {"code": "PGRST204", "message": f"Could not find the columns {sorted(unknown)}"}
            if missing := [name for name in _NOT_NULL if row.get(name) is None]:
                return 400, {"code": "23502", "message": f"null value in {missing}"}
        self.rows += rows
        return 201, rows


@contextmanager
def standing_in(key: str) -> Iterator[Supabase]:
    """A stand-in that answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            rows = body if isinstance(body, list) else [body]
            status, answer = standin.insert(self.path.partition("?")[0], self.headers["apikey"], rows)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """It says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        standin = Supabase(f"http://127.0.0.1:{server.server_port}", key)
        thread = threading.Thread(target=server.serve_forever, name="supabase")
        thread.start()
        try:
            yield standin
        finally:
            server.shutdown()
            thread.join()
