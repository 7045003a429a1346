"""The files that a box is set up with: they are valid, and name only settings that exist."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_runtime.config import SLICES, env_names, file_names
from nexa_runtime.tenancy.tenant import LIMIT_KEYS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
COMPOSE = DEPLOY / "docker-compose.nexa.yml"
KUBERNETES = DEPLOY / "kubernetes" / "nexa-runtime.yaml"
TOOLS = Path(sys.executable).parent

SETTINGS = {name for cls in SLICES for field in cls.model_fields.values() for name in env_names(field)}
SETTINGS |= {name for cls in SLICES for name in file_names(cls).values()}
OF_COMPOSE = {
    "NEXA_IMAGE", "NEXA_DOCKERFILE", "NEXA_DOMAIN", "NEXA_CERT_RESOLVER", "NEXA_MEMORY_LIMIT", "NEXA_CPUS",
    "NEXA_SECRETS_DIR",
}  # fmt: skip


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_is_one() -> None:
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_every_variable_of_the_compose_file_has_an_example() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    given = set(re.findall(r"^([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert used == given


def test_no_default_of_a_variable_has_a_brace() -> None:
    """Compose ends a variable at the first one, and what follows stays as text behind its value."""
    assert re.findall(r"\$\{[A-Z_]+:-[^}]*\{", COMPOSE.read_text()) == []


def test_what_is_set_is_a_setting() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    given = set(re.findall(r"^([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    names = set(compose["services"]["nexa-runtime"]["environment"]) | (given - OF_COMPOSE)
    for document in yaml.safe_load_all(KUBERNETES.read_text()):
        if document["kind"] == "ConfigMap":
            names |= set(document["data"])
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            names |= {one["name"] for one in container["env"]}
    unit = (DEPLOY / "nexa-runtime.service").read_text()
    for dockerfile in ("Dockerfile.cpu", "Dockerfile.cuda"):
        unit += (ROOT / dockerfile).read_text()
    names |= set(re.findall(r"\b(NEXA_[A-Z_]+)=", unit))
    assert names <= SETTINGS
    spec = yaml.safe_load((DEPLOY / "nexa-runtime.yml").read_text())
    assert set(spec["tenancy"]["secrets"]["keys"]) <= set(LIMIT_KEYS)


def test_the_container_has_the_name_of_the_guide_and_writes_nothing_but_its_volumes() -> None:
    service = yaml.safe_load(COMPOSE.read_text())["services"]["nexa-runtime"]
    assert service["container_name"] == "smarteros-nexa-runtime"
    assert service["read_only"] is True
    assert [volume.split(":")[1] for volume in service["volumes"]] == ["/models", "/state"]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_the_dockerfiles_have_no_faults(name: str) -> None:
    run(TOOLS / "hadolint", ROOT / name)
    text = (ROOT / name).read_text()
    build, runtime = text.split("\nFROM ")[1:]
    assert "g++" in build
    assert "g++" not in runtime
    assert "USER 10001:10001" in runtime
    assert "HEALTHCHECK" in runtime


def test_the_image_has_all_that_is_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        part.removeprefix("./")
        for name in ("Dockerfile.cpu", "Dockerfile.cuda")
        for line in (ROOT / name).read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for part in line.split()[1:-1]
    }
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / one).exists() for one in copied)


def test_the_kubernetes_manifests_are_valid() -> None:
    run(TOOLS / "kubernetes-validate", "--strict", KUBERNETES)


def test_the_patch_for_a_gpu_fits_the_deployment() -> None:
    patch = yaml.safe_load((DEPLOY / "kubernetes" / "gpu-patch.yaml").read_text())
    deployment = next(
        one for one in yaml.safe_load_all(KUBERNETES.read_text()) if one["kind"] == "Deployment"
    )
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == deployment["spec"]["template"]["spec"]["containers"][0]["name"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "nexa-runtime.service"
    text = (DEPLOY / "nexa-runtime.service").read_text()
    unit.write_text(text.replace("/opt/nexa-runtime/.venv/bin/nexa-runtime", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def workflow() -> Any:
    return json.loads((DEPLOY / "n8n-nexa-multitenant.json").read_text())


def test_the_workflow_goes_from_the_webhook_to_the_answer() -> None:
    flow = workflow()
    nodes = {node["name"]: node for node in flow["nodes"]}
    path: list[str] = []
    name: str | None = "Webhook"
    while name is not None:
        path.append(nodes[name]["type"].removeprefix("n8n-nodes-base."))
        following = flow["connections"].get(name, {}).get("main", [[]])[0]
        name = following[0]["node"] if following else None
    assert path == ["webhook", "httpRequest", "supabase", "respondToWebhook"]


def test_the_workflow_asks_as_the_tenant() -> None:
    chat = next(node["parameters"] for node in workflow()["nodes"] if node["name"] == "Chat")
    (header,) = chat["headerParameters"]["parameters"]
    assert header == {"name": "X-Tenant-Id", "value": "={{ $json.body.tenant_id }}"}
    assert chat["url"].endswith("/v1/chat/completions")


def test_the_workflow_hands_on_what_is_refused() -> None:
    nodes = {node["name"]: node for node in workflow()["nodes"]}
    assert nodes["Chat"]["parameters"]["options"]["response"]["response"]["neverError"] is True
    assert "statusCode" in nodes["Respond"]["parameters"]["options"]["responseCode"]
    assert nodes["Log to Supabase"]["onError"] == "continueRegularOutput"


def test_the_workflow_answers_when_nobody_does() -> None:
    flow = workflow()
    nodes = {node["name"]: node for node in flow["nodes"]}
    assert nodes["Chat"]["onError"] == "continueErrorOutput"
    (unreachable,) = flow["connections"]["Chat"]["main"][1]
    assert nodes[unreachable["node"]]["type"] == "n8n-nodes-base.respondToWebhook"
