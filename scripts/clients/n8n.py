"""The workflow of ``scripts/deploy`` in a real n8n, against a server of its own with the demo model.

Prints a line for each check: what was seen, or what was not as promised. Ends with 1 when anything was not.
The workflow is imported as it is, but for the URL of the server; Supabase is a stand-in. Two more workflows,
with n8n's nodes for OpenAI, ask with a tenant's key. Everything is on loopback, and ends here.

    scripts/clients/n8n
"""

import json
import secrets
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from nexa_runtime.tenancy import keys
from scripts.bench.child import Broken, expect
from scripts.bench.common import BenchError, serving_tenants
from scripts.clients.n8n_box import N8n
from scripts.clients.n8n_checks import (
    CHECKS,
    TENANT,
    TENANTS,
    Box,
    nodes_resolve,
    server_is_away,
    webhook_is_there,
)
from scripts.clients.n8n_openai import chat_model_flow, openai_node_flow
from scripts.clients.supabase_standin import Supabase, standing_in

WORKFLOW = Path(__file__).parents[1] / "deploy" / "n8n-nexa-multitenant.json"
URL_OF_THE_WORKFLOW = "http://nexa-runtime:8080"


class Report:
    """One line per check; ``is_good`` until one was broken."""

    is_good = True

    def check(self, name: str, run: Callable[[], str]) -> bool:
        """Run one, print it; whether it went well."""
        try:
            verdict, text = "ok", run()
        except (Broken, BenchError, httpx.HTTPError, ValueError, LookupError) as error:
            verdict, text = "BROKEN", f"{type(error).__name__}: {error}"
            self.is_good = False
        print(f"{verdict:8} {name:18} {text}", flush=True)
        return verdict == "ok"


def workflow_for(server_url: str) -> dict[str, Any]:
    """The workflow, with this server's URL. Raises ``Broken`` if it asks another one than is known."""
    text = WORKFLOW.read_text()
    expect(text.count(URL_OF_THE_WORKFLOW) == 1, f"{URL_OF_THE_WORKFLOW} is not in the workflow once")
    flow: dict[str, Any] = json.loads(text.replace(URL_OF_THE_WORKFLOW, server_url))
    return flow


def credentials(
    server_url: str, supabase: Supabase, service_key: str, tenant_key: str
) -> list[dict[str, Any]]:
    """What the workflows name, as n8n imports it."""
    return [
        {
            "id": "nexa-service-key",
            "name": "Nexa service key",
            "type": "httpHeaderAuth",
            "data": {"name": "Authorization", "value": f"Bearer {service_key}"},
        },
        {
            "id": "supabase",
            "name": "Supabase",
            "type": "supabaseApi",
            "data": {"host": supabase.url, "serviceRole": supabase.key},
        },
        {
            "id": "nexa-tenant-key",
            "name": "Nexa tenant key",
            "type": "openAiApi",
            "data": {"apiKey": tenant_key, "url": f"{server_url}/v1"},
        },
    ]


def run(node_modules: Path, folder: Path, report: Report) -> None:
    """Start everything, check everything. Raises ``BenchError`` when the server does not start."""
    service_key, admin_key = secrets.token_urlsafe(), secrets.token_urlsafe()
    tenant_key = keys.create_key(TENANT)
    of_key = {"NEXA_API_KEY_SHA256": keys.digest(tenant_key).hex()}
    tenants = TENANTS | {TENANT: TENANTS[TENANT] | of_key}
    settings = {
        "NEXA_API_KEY": service_key,
        "NEXA_ADMIN_KEY": admin_key,
        "DEFAULT_TENANT_ID": "demo",  # as in .env.example: who names no tenant must not become that one
        "NEXA_MODEL_STORE": folder / "store",
        "NEXA_STATE_DIR": folder / "state",
        "NEXA_THREADS": 1,
        "HF_HUB_OFFLINE": 1,
    }
    n8n = N8n(node_modules, folder)
    with ExitStack() as stack:
        supabase = stack.enter_context(standing_in(secrets.token_urlsafe()))
        serving = ExitStack()
        stack.push(serving)
        log = folder / "server.log"
        server = serving.enter_context(serving_tenants(tenants, {}, settings=settings, log=log))
        flow = workflow_for(server.url)
        flows = [flow, chat_model_flow(), openai_node_flow()]
        for one in flows:
            report.check("nodes", partial(nodes_resolve, n8n, one))
        given = credentials(server.url, supabase, service_key, tenant_key)
        if not report.check("import", partial(bring, n8n, given, flows)):
            return
        stack.enter_context(n8n.started())
        box = Box(server, n8n, supabase, admin_key)
        if not report.check("webhook", partial(webhook_is_there, box)):
            return
        for name, check in CHECKS.items():
            report.check(name, partial(check, box))
        serving.close()
        report.check("server away", partial(server_is_away, box))


def bring(n8n: N8n, given: list[dict[str, Any]], flows: list[dict[str, Any]]) -> str:
    """Import and publish by n8n's own commands."""
    n8n.bring(given, flows)
    return f"n8n {n8n.version}: {len(given)} credentials, {len(flows)} workflows, all published"


def main() -> None:
    """Run in a temporary folder; 1 when anything was not as promised, with the ends of the logs."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="nexa-n8n-") as name:
        folder = Path(name)
        try:
            run(Path(sys.argv[1]), folder, report)
        except (BenchError, Broken) as error:
            report.is_good = False
            print(f"BROKEN   start              {error}")
        except KeyboardInterrupt:
            sys.exit(130)
        if not report.is_good:
            for log in folder.glob("*.log"):
                end = log.read_text(errors="replace")[-3000:]
                print(f"--- the end of {log.name}\n{end}", file=sys.stderr)
    sys.exit(0 if report.is_good else 1)


if __name__ == "__main__":
    main()
