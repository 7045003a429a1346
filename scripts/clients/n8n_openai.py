"""Workflows that ask with n8n's own nodes for OpenAI, by a credential with a base URL and a tenant's key.

Owns their shape: a webhook, one node that asks, and its last output as the answer. ``n8n`` imports and calls
them; nobody else needs them, so they are no files.
"""

from typing import Any

_CREDENTIAL = {"openAiApi": {"id": "nexa-tenant-key", "name": "Nexa tenant key"}}
_MODEL = {"__rl": True, "mode": "id", "value": "demo"}
_LANGCHAIN = "@n8n/n8n-nodes-langchain"
_QUESTION = "={{ $json.body.message }}"


def chat_model_flow() -> dict[str, Any]:
    """*Basic LLM Chain* with an *OpenAI Chat Model*."""
    chain = _node("Chain", "chainLlm", 1.9, {"promptType": "define", "text": _QUESTION})
    model = _node("Model", "lmChatOpenAi", 1.3, {"model": _MODEL, "options": {"temperature": 0}})
    model["credentials"] = _CREDENTIAL
    link = {"Model": {"ai_languageModel": [[{"node": "Chain", "type": "ai_languageModel", "index": 0}]]}}
    return _flow("chat-model", chain, model, connections=link)


def openai_node_flow() -> dict[str, Any]:
    """*OpenAI*, which is asked to message a model."""
    parameters = {"modelId": _MODEL, "responses": {"values": [{"content": _QUESTION}]}, "options": {}}
    node = _node("OpenAI", "openAi", 2.1, parameters)
    node["credentials"] = _CREDENTIAL
    return _flow("openai-node", node, connections={})


def _flow(
    path: str, asking: dict[str, Any], *others: dict[str, Any], connections: dict[str, Any]
) -> dict[str, Any]:
    webhook = {
        "id": f"{path}-webhook",
        "name": "Webhook",
        "type": "n8n-nodes-base.webhook",
        "typeVersion": 2,
        "position": [0, 0],
        "webhookId": path,
        "parameters": {"httpMethod": "POST", "path": path, "responseMode": "lastNode", "options": {}},
    }
    first = {"Webhook": {"main": [[{"node": asking["name"], "type": "main", "index": 0}]]}}
    return {
        "id": path,
        "name": path,
        "nodes": [webhook, asking, *others],
        "connections": first | connections,
        "settings": {"executionOrder": "v1"},
        "active": False,
    }


def _node(name: str, kind: str, version: float, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{kind}-node",
        "name": name,
        "type": f"{_LANGCHAIN}.{kind}",
        "typeVersion": version,
        "position": [220, 0],
        "parameters": parameters,
    }
