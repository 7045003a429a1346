"""What is asked of the workflow in n8n, and what must come back.

Owns the questions and the promises: what a caller of the webhook gets, what the table gets, and whose the
server says that the request was. It starts nothing: ``n8n`` does, and prints what a check returns or raises.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from scripts.bench.child import Broken, expect
from scripts.bench.common import RunningServer
from scripts.clients.n8n_box import N8n
from scripts.clients.supabase_standin import Supabase

TENANT = "rut-76832940-3"
LIMITED = "one-a-minute"
SPOILED = "spoiled"
TENANTS: dict[str, dict[str, object]] = {
    TENANT: {"NEXA_MAX_OUTPUT_TOKENS": 768},
    LIMITED: {"TENANT_HARD_LIMIT_RPM": 1},
    SPOILED: {"NEXA_MAX_OUTPUT_TOKENS": "many"},
    "demo": {},
}
"""The tenants that the checks count on, with their limits."""

QUESTION = "¿Cuál es la capital de Perú?"
CAPITAL = "Lima"


@dataclass(frozen=True)
class Box:
    """What runs, and the keys that open it."""

    server: RunningServer
    n8n: N8n
    supabase: Supabase
    admin_key: str

    def call(self, body: Mapping[str, Any], path: str = "nexa-chat") -> httpx.Response:
        """Call a webhook."""
        url = f"{self.n8n.url}/webhook/{path}"
        return httpx.post(url, json=body, timeout=120, trust_env=False)

    def ask(self, tenant_id: str, **fields: Any) -> httpx.Response:
        """Call the workflow's webhook as a caller of a tenant does."""
        return self.call({"tenant_id": tenant_id, "message": QUESTION} | fields)

    def usage(self, tenant_id: str) -> dict[str, Any]:
        """What the server says that a tenant has used of the demo model."""
        headers = {"authorization": f"Bearer {self.admin_key}"}
        url = f"{self.server.url}/admin/usage"
        answer = httpx.get(url, params={"tenant": tenant_id}, headers=headers, trust_env=False)
        return next(iter(answer.raise_for_status().json()["usage"]), {"requests": 0})


def nodes_resolve(n8n: N8n, flow: Mapping[str, Any]) -> str:
    """Every node's type, version and parameters are known to this n8n."""
    for node in flow["nodes"]:
        name, version = node["type"], node["typeVersion"]
        fitting = [one for one in n8n.node_types.get(name, []) if version in versions(one)]
        expect(bool(fitting), f"{name} {version} is not in n8n {n8n.version}")
        strangers = list(unknown_parameters(node["parameters"], fitting[0]["properties"]))
        expect(not strangers, f"{name} {version} has no parameter {', '.join(strangers)}")
    names = [f"{node['type'].rpartition('.')[2]} {node['typeVersion']}" for node in flow["nodes"]]
    return ", ".join(names)


def versions(description: Mapping[str, Any]) -> list[float]:
    """The versions that a description of a node is of."""
    version = description["version"]
    return version if isinstance(version, list) else [version]


def unknown_parameters(values: Mapping[str, Any], properties: list[dict[str, Any]]) -> Iterator[str]:
    """Names in ``values`` that no property has, also inside groups of properties."""
    for name, value in values.items():
        alike = [one for one in properties if one["name"] == name]
        if not alike:
            yield name
        for kind in {one["type"] for one in alike} & {"collection", "fixedCollection"}:
            options = [option for one in alike if one["type"] == kind for option in one["options"]]
            if kind == "collection":
                yield from unknown_parameters(value, options)
                continue
            for group, members in value.items():
                inner = [one for option in options if option["name"] == group for one in option["values"]]
                for member in members if isinstance(members, list) else [members]:
                    yield from unknown_parameters(member, inner)


def webhook_is_there(box: Box, timeout_s: float = 60) -> str:
    """n8n has registered the workflow's webhook; it says so to who asks with another method."""
    deadline = time.monotonic() + timeout_s
    text = ""
    while time.monotonic() < deadline:
        text = httpx.get(f"{box.n8n.url}/webhook/nexa-chat", trust_env=False).text
        if "POST" in text:
            return "POST /webhook/nexa-chat"
        time.sleep(0.5)
    raise Broken(f"n8n says {text[:300]!r}")


def answers(box: Box) -> str:
    """The webhook answers, under the tenant's cap, and the row and the server's books agree."""
    answer = box.ask(TENANT, max_tokens=1024)
    expect(answer.status_code == 200, f"status {answer.status_code}: {answer.text[:300]}")
    body = answer.json()
    expect(CAPITAL in body["answer"], f"the answer is {body['answer']!r}")
    expect(body["clamped"] == "max_tokens=768", f"clamped is {body['clamped']!r}")
    expect(body["logged"] is True, f"logged is {body['logged']!r}")
    return f"{body['answer']!r}, {body['finish_reason']}, clamped {body['clamped']}"


def logs_the_row(box: Box) -> str:
    """One row per answer, with the numbers that the caller got."""
    before = len(box.supabase.rows)
    usage = box.ask(TENANT).json()["usage"]
    expect(len(box.supabase.rows) == before + 1, f"{len(box.supabase.rows) - before} rows came")
    row = box.supabase.rows[-1]
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    wanted = {"tenant_id": TENANT, "model": "demo", "status": 200} | {name: usage[name] for name in counts}
    got = {name: row.get(name) for name in wanted}
    expect(got == wanted, f"the row has {got}, not {wanted}")
    expect(row["request_id"].startswith("req_"), f"request_id is {row.get('request_id')!r}")
    return json.dumps(row)


def is_the_tenants(box: Box) -> str:
    """The server's own books name the tenant, with the same tokens."""
    before = box.usage(TENANT)
    tokens = box.ask(TENANT).json()["usage"]["total_tokens"]
    after = box.usage(TENANT)
    requests = after["requests"] - before["requests"]
    used = after["total_tokens"] - before["total_tokens"]
    expect((requests, used) == (1, tokens), f"{requests} requests and {used} tokens more, not 1 and {tokens}")
    return f"/admin/usage: one request and {tokens} tokens more of {TENANT}"


def refused(answer: httpx.Response, status: int, code: str, *words: str) -> str:
    """What a refusal says. Raises ``Broken`` unless it has this status, this code and these words."""
    expect(answer.status_code == status, f"status {answer.status_code}, not {status}: {answer.text[:300]}")
    error = answer.json()["error"]
    expect(error.get("code") == code, f"the code is {error.get('code')!r}, not {code!r}")
    expect(all(word in error["message"] for word in words), f"it says only {error['message']!r}")
    return f"{status} {code}: {error['message']}"


def names_no_tenant(box: Box) -> str:
    """A call without ``tenant_id`` is refused, in words that say what is missing."""
    before = len(box.supabase.rows)
    text = refused(box.call({"message": QUESTION}), 400, "invalid_tenant_id", "tenant_id")
    expect(len(box.supabase.rows) == before, "nobody's request has a row")
    return text


def names_no_message(box: Box) -> str:
    """A call without ``message``."""
    return refused(box.call({"tenant_id": TENANT}), 400, "invalid_request", "message")


def names_a_stranger(box: Box) -> str:
    """A tenant that is not there."""
    return refused(box.ask("nobody"), 403, "tenant_unknown", "nobody")


def asks_too_often(box: Box) -> str:
    """The second request of a tenant that has one a minute; the caller learns when to come back."""
    first = box.ask(LIMITED)
    expect(first.status_code == 200, f"the first: {first.status_code} {first.text[:300]}")
    second = box.ask(LIMITED)
    text = refused(second, 429, "rate_limit_exceeded")
    wait_s = second.json()["retry_after_s"]
    expect(isinstance(wait_s, int) and 0 < wait_s <= 60, f"retry_after_s is {wait_s!r}")
    expect(box.supabase.rows[-1]["status"] == 429, "the refusal has no row")
    return f"{text} (retry_after_s {wait_s}, its row has status 429)"


def has_spoiled_limits(box: Box) -> str:
    """A tenant whose limits cannot be read: 503."""
    return refused(box.ask(SPOILED), 503, "tenant_config_invalid")


def has_no_database(box: Box) -> str:
    """Supabase refuses the row; the answer comes all the same, and says so."""
    box.supabase.is_away = True
    try:
        answer = box.ask(TENANT)
    finally:
        box.supabase.is_away = False
    expect(answer.status_code == 200, f"status {answer.status_code}: {answer.text[:300]}")
    body = answer.json()
    expect(CAPITAL in body["answer"], f"the answer is {body['answer']!r}")
    expect(body["logged"] is False, f"logged is {body['logged']!r}")
    return f"{body['answer']!r}, logged {body['logged']}"


def asks_with_the_chat_model(box: Box) -> str:
    """*Basic LLM Chain* with an *OpenAI Chat Model*."""
    return text_of_the_tenant(box, "chat-model", lambda body: body["text"])


def asks_with_the_openai_node(box: Box) -> str:
    """*OpenAI*, message a model."""
    return text_of_the_tenant(box, "openai-node", lambda body: body["output"][0]["content"][0]["text"])


def text_of_the_tenant(box: Box, path: str, text_in: Callable[[Any], str]) -> str:
    """What a workflow with a tenant's key answers. Raises ``Broken`` if it was not the tenant's request."""
    before = box.usage(TENANT)["requests"]
    answer = box.call({"message": QUESTION}, path)
    expect(answer.status_code == 200, f"status {answer.status_code}: {answer.text[:300]}")
    text = text_in(answer.json())
    expect(CAPITAL in text, f"the answer is {text!r}")
    expect(box.usage(TENANT)["requests"] == before + 1, "the request is not the tenant's")
    return repr(text)


CHECKS: Mapping[str, Callable[[Box], str]] = {
    "answer": answers,
    "row": logs_the_row,
    "usage": is_the_tenants,
    "no tenant_id": names_no_tenant,
    "no message": names_no_message,
    "unknown tenant": names_a_stranger,
    "rate limit": asks_too_often,
    "spoiled limits": has_spoiled_limits,
    "database away": has_no_database,
    "OpenAI Chat Model": asks_with_the_chat_model,
    "OpenAI": asks_with_the_openai_node,
}


def server_is_away(box: Box) -> str:
    """Nobody listens where the server was: the caller is told, and does not hang."""
    return refused(box.ask(TENANT), 502, "unreachable", "cannot be reached")
