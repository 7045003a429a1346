"""An n8n of one's own: a folder with its database and key, its commands, and its process.

Owns the settings that keep n8n to this machine and to that folder (no telemetry, no version check, loopback
only), and what its packages say of their nodes. It judges nothing: ``n8n`` does.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.bench.common import BenchError, free_port, running

_PACKAGES = ("n8n-nodes-base", "@n8n/n8n-nodes-langchain")
_COMMAND_S = 240
_QUIET = {
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_WHATS_NEW_ENABLED": "false",
    "N8N_DYNAMIC_BANNERS_ENABLED": "false",
    "N8N_TEMPLATES_ENABLED": "false",
    "N8N_PERSONALIZATION_ENABLED": "false",
    "N8N_COMMUNITY_PACKAGES_ENABLED": "false",
    "N8N_LICENSE_AUTO_RENEW_ENABLED": "false",
    "N8N_LISTEN_ADDRESS": "127.0.0.1",
    "N8N_RUNNERS_BROKER_LISTEN_ADDRESS": "127.0.0.1",
    "N8N_HOST": "127.0.0.1",
    "N8N_GRACEFUL_SHUTDOWN_TIMEOUT": "10",
    "N8N_LOG_LEVEL": "info",
    "N8N_DISABLED_MODULES": "mcp-registry,community-packages",
    # Whatever else it would ask outside ends at a port that nobody listens on.
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "NO_COLOR": "1",
}


class N8n:
    """``node_modules``: where npm has put n8n. ``folder``: for everything that it writes."""

    def __init__(self, node_modules: Path, folder: Path) -> None:
        self._node_modules = node_modules
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.log_path = folder / "n8n.log"
        # Nothing of the caller's but where programs are: no proxy, no other n8n's settings.
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "N8N_USER_FOLDER": str(folder),
            "N8N_ENCRYPTION_KEY": secrets.token_hex(16),
            "N8N_PORT": str(self._port),
            "N8N_RUNNERS_BROKER_PORT": str(free_port()),
            **_QUIET,
        }

    @property
    def version(self) -> str:
        """Of the package that npm has brought."""
        return str(self._manifest("n8n")["version"])

    @cached_property
    def node_types(self) -> Mapping[str, list[dict[str, Any]]]:
        """What each type of node says of itself, by its full name; old and new versions stand apart."""
        found: dict[str, list[dict[str, Any]]] = {}
        for package in _PACKAGES:
            path = self._node_modules / package / "dist" / "types" / "nodes.json"
            for description in json.loads(path.read_text()):
                found.setdefault(f"{package}.{description['name']}", []).append(description)
        return found

    def command(self, *words: str) -> str:
        """Run ``n8n`` once; what it printed. Raises ``BenchError``."""
        try:
            done = subprocess.run(
                [*self._command, *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=_COMMAND_S,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"n8n {words[0]} took longer than {_COMMAND_S} s") from None
        if done.returncode != 0:
            raise BenchError(f"n8n {words[0]} ended with {done.returncode}: {done.stdout[-600:].strip()}")
        return done.stdout

    def bring(self, credentials: Iterable[dict[str, Any]], workflows: Iterable[dict[str, Any]]) -> None:
        """Import both by n8n's own commands, and publish the workflows. Raises ``BenchError``."""
        secrets_file = self._folder / "credentials.json"
        secrets_file.touch(mode=0o600)
        secrets_file.write_text(json.dumps(list(credentials)))
        self._import("credentials", secrets_file)
        flows = self._folder / "workflows.json"
        brought = list(workflows)
        flows.write_text(json.dumps(brought))
        self._import("workflow", flows)
        for workflow in brought:
            self.command("publish:workflow", f"--id={workflow['id']}")

    @contextmanager
    def started(self) -> Iterator[None]:
        """The process, from when its workflows are there until the block ends. Raises ``BenchError``."""
        command = [*self._command, "start"]
        with running(
            command, self._port, "/healthz/readiness", self.log_path, env=self._environment, timeout_s=240
        ):
            yield

    def _import(self, what: str, file: Path) -> None:
        printed = self.command(f"import:{what}", f"--input={file}")
        if "Successfully imported" not in printed:  # some failures end with 0
            raise BenchError(f"n8n import:{what} says {printed[-600:].strip()}")

    @property
    def _command(self) -> list[str]:
        return ["node", str(self._node_modules / "n8n" / "bin" / "n8n")]

    def _manifest(self, package: str) -> Mapping[str, Any]:
        manifest: Mapping[str, Any] = json.loads((self._node_modules / package / "package.json").read_text())
        return manifest
