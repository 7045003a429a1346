"""``nexa-runtime serve``: from settings to a server that answers.

Owns the order of the start: the port first (it fails at once), then the model, then the first request.
"""

import asyncio
import gc
import resource
import sys
from contextlib import nullcontext, suppress

import typer

from nexa_runtime import exit_codes
from nexa_runtime.cli.loading import load_pool
from nexa_runtime.config import Settings
from nexa_runtime.server.app import App, bind, bind_metrics
from nexa_runtime.server.auth import check_exposure, check_origins
from nexa_runtime.server.discovery import base_url
from nexa_runtime.server.lifecycle import Server
from nexa_runtime.server.tls import check_tls
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.telemetry import log_crashes, stderr_behind
from nexa_runtime.tenancy.setup import open_tenancy
from nexa_runtime.usage.database import open_table
from nexa_runtime.usage.request_log import check_request_log

_GPU_SWITCH_INTERVAL_S = 2e-4
"""CPython hands the GIL over every 5 ms by default: as long as a whole engine step on a GPU. On a processor
that is right: with eight clients on a 0.5B model, 75 tokens/s at 5 ms and 63 at 0.2 ms (two cores).
"""

_OTHER_DESCRIPTORS = 256
"""Models, the store, tenants' limits, the connections that are told that there are too many."""


@stderr_behind()
def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ``NexaError`` when the server cannot start."""
    log_crashes()
    check_exposure(settings.server.host, settings.access)
    check_origins(settings.server.cors_origins, settings.access)
    check_tls(settings.server)
    if settings.discovery.etcd_url is not None:
        base_url(settings.server, settings.discovery)
    check_request_log(settings.usage)
    open_table(settings.usage_database)
    tenancy = open_tenancy(settings.tenancy, settings.vault)
    _allow_descriptors(settings.server.max_connections)
    with (
        bind(settings.server) as listener,
        bind_metrics(settings.server, settings.metrics) or nullcontext() as metrics_listener,
    ):
        pool = load_pool(settings)
        pool.on_load(_tune)
        app = App(pool, tenancy, settings, metrics_listener)
        _greet(pool, settings, *listener.getsockname()[:2])
        gc.freeze()  # modules and models stay: looking at them again holds every stream for 60 ms at a time
        server = Server(app, settings.server)
        asyncio.run(server.serve(sockets=[listener]))
    if server.was_cut_short:
        raise typer.Exit(exit_codes.CUT_SHORT)


def _allow_descriptors(max_connections: int) -> None:
    """Raise the process's own limit where it is too low for its connections, as far as it may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # macOS says so where it does not allow as many
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _tune(model: LoadedModel) -> None:
    if model.model.is_on_gpu:
        sys.setswitchinterval(_GPU_SWITCH_INTERVAL_S)


def _greet(pool: ModelPool, settings: Settings, host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{reachable}]" if ":" in reachable else reachable
    url = f"{'https' if settings.server.tls_cert else 'http'}://{shown}:{port}"
    if (problem := pool.default_problem) is not None:
        typer.echo(f"{problem}\n", err=True)
    typer.echo(
        f"Nexa Runtime serves {pool.library.default_name} at {url} (Ctrl-C stops it). Try:\n\n"
        f"  curl {url}/v1/chat/completions{_key_header(settings)} -H 'Content-Type: application/json' \\\n"
        """    -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'\n""",
        err=True,
    )


def _key_header(settings: Settings) -> str:
    """For the example: what a server with keys wants to see."""
    access = settings.access
    has_key = access.api_key is not None or bool(access.api_key_sha256)
    return " -H \"Authorization: Bearer $NEXA_API_KEY\" -H 'X-Tenant-Id: TENANT'" if has_key else ""
