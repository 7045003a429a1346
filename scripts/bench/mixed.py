"""A mixed load: every kind of request, of several tenants, with disconnects at random moments.

Owns what is asked and whether the answer is what it should be. Everything is drawn from one seed, so that two
runs ask the same. ``soak`` runs it.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from scripts.bench.answers import FULL, problem_of_refusal, problem_of_stream
from scripts.bench.common import words
from scripts.bench.raw import RawAnswer, request_bytes, send

TENANTS: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "heavy": {"NEXA_WEIGHT": 2},
    "narrow": {"NEXA_MAX_CONCURRENCY": 1, "NEXA_MAX_QUEUE": 2},
    "rated": {"TENANT_HARD_LIMIT_RPM": 120},
    "counted": {"TENANT_HARD_LIMIT_TPM": 6000},
    "terse": {"NEXA_MAX_OUTPUT_TOKENS": 16},
}
"""The six tenants; each meets another limit."""

_DISCONNECTS = 0.15
_MAX_PAUSE_S = 0.5
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Ask:
    """One request. ``statuses``: what a server with room answers."""

    path: str
    body: Mapping[str, Any]
    statuses: frozenset[int] = frozenset({200})


@dataclass
class Totals:
    """What came of the load so far. ``problems``: what no answer should have."""

    by_kind: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    num_cut: int = 0

    def described(self) -> dict[str, object]:
        """As JSON has it. ``num_requests``: sent, those that we have cut too."""
        return {
            "num_requests": self.by_kind.total(),
            "num_cut": self.num_cut,
            "by_kind": dict(self.by_kind),
            "by_status": dict(self.by_status),
        }


class MixedLoad:
    """``num_clients`` clients a tenant, each with one request at a time."""

    def __init__(self, url: str, *, seed: int, num_clients: int) -> None:
        self._url = url
        self._seed = seed
        self._num_clients = num_clients
        self._round = 0

    async def run(self, seconds: float) -> Totals:
        """Put the load on for so long; what runs then is waited for."""
        totals = Totals()
        self._round += 1
        end = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for tenant in TENANTS:
                for number in range(self._num_clients):
                    random_ = Random(f"{self._seed} {self._round} {tenant} {number}")
                    group.create_task(self._one_client(tenant, random_, end, totals))
        return totals

    async def _one_client(self, tenant: str, random_: Random, end: float, totals: Totals) -> None:
        shared = words(Random(f"{self._seed} {tenant}"), 60)
        kinds = list(_KINDS)
        while time.perf_counter() < end:
            kind = random_.choice(kinds)
            ask = _KINDS[kind](random_, shared)
            totals.by_kind[kind] += 1
            request = request_bytes(ask.path, ask.body, tenant)
            work = asyncio.create_task(send(self._url, request))
            if random_.random() < _DISCONNECTS:
                await asyncio.wait([work], timeout=random_.expovariate(5))
                work.cancel()
            await asyncio.wait([work])
            if work.cancelled():
                totals.num_cut += 1
            else:
                _take(totals, kind, ask, work.result())
            await asyncio.sleep(random_.random() * _MAX_PAUSE_S)


def _take(totals: Totals, kind: str, ask: Ask, answer: RawAnswer) -> None:
    totals.by_status[str(answer.status)] += 1
    if (problem := _problem(ask, answer)) is not None:
        totals.problems[f"{kind}: {problem}"] += 1


def _problem(ask: Ask, answer: RawAnswer) -> str | None:
    if answer.error is not None:
        return f"no whole answer: {answer.error}"
    if answer.status not in ask.statuses | FULL:
        return f"{answer.status} {answer.body[:200]!r}"
    if answer.status != 200:
        return problem_of_refusal(answer.status, answer.headers, answer.body, ask.path)
    if ask.body.get("stream"):
        return problem_of_stream(answer.body.decode().splitlines())
    try:
        json.loads(answer.body)
    except ValueError:
        return f"an answer that is no JSON: {answer.body[:100]!r}"
    return None


def _messages(random_: Random, shared: str = "") -> list[dict[str, str]]:
    question = {"role": "user", "content": words(random_, random_.randint(2, 20))}
    return [{"role": "system", "content": shared}, question] if shared else [question]


def _sampled(random_: Random, max_tokens: int = 48) -> dict[str, Any]:
    return {
        "max_tokens": random_.randint(1, max_tokens),
        "temperature": random_.choice([0.0, 0.8]),
        "seed": random_.randint(0, 2**31),
    }


def _chat(random_: Random, shared: str, **fields: object) -> Ask:
    return Ask("/v1/chat/completions", {"messages": _messages(random_)} | _sampled(random_) | fields)


def _long_chat(random_: Random, shared: str) -> Ask:
    body = {"messages": _messages(random_, shared), "stream": True} | _sampled(random_)
    return Ask("/v1/chat/completions", body)


def _completion(random_: Random, shared: str, **fields: object) -> Ask:
    return Ask("/v1/completions", {"prompt": words(random_, 12)} | _sampled(random_) | fields)


def _schema(random_: Random, shared: str) -> Ask:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA}}
    return _chat(random_, shared, response_format=form)


def _tools(random_: Random, shared: str) -> Ask:
    choice = random_.choice(["auto", "required", "none"])
    return _chat(random_, shared, tools=[_TOOL], tool_choice=choice, stream=random_.random() < 0.5)


def _embeddings(random_: Random, shared: str) -> Ask:
    texts = [words(random_, random_.randint(1, 20)) for _ in range(random_.randint(1, 8))]
    return Ask("/v1/embeddings", {"input": texts})


def _tokenize(random_: Random, shared: str) -> Ask:
    return Ask("/tokenize", {"content": shared, "with_pieces": random_.random() < 0.5})


def _responses(random_: Random, shared: str) -> Ask:
    stream = random_.random() < 0.5
    limits = {"max_output_tokens": random_.randint(16, 48)}
    return Ask("/v1/responses", {"input": words(random_, 8), "stream": stream} | limits)


def _anthropic(random_: Random, shared: str) -> Ask:
    stream = random_.random() < 0.5
    body = {"messages": _messages(random_), "max_tokens": random_.randint(1, 48), "stream": stream}
    return Ask("/v1/messages", body)


def _wrong(random_: Random, shared: str) -> Ask:
    bad = frozenset({400, 404, 405})
    return random_.choice(
        [
            Ask("/v1/chat/completions", {"messages": "none"}, bad),
            Ask("/v1/chat/completions", {"messages": _messages(random_), "max_tokens": 0}, bad),
            Ask("/v1/chat/completions", {"messages": _messages(random_), "model": "no-such-model"}, bad),
            Ask("/v1/chat/completions", {"messages": _messages(random_), "functions": [{}]}, bad),
            Ask("/v1/completions", {"prompt": "word " * 20_000}, bad),
            Ask("/v1/chat/completions", {"messages": _messages(random_), "regex": "(" * 50}, bad),
            Ask("/v1/messages", {"messages": [{"role": "robot", "content": "hi"}]}, bad),
            Ask("/v1/no-such-path", {}, bad),
            Ask("/v1/models", {}, bad),
        ]
    )


_KINDS: Mapping[str, Callable[[Random, str], Ask]] = {
    "chat": _chat,
    "chat, streamed": lambda random_, shared: _chat(random_, shared, stream=True),
    "chat, two answers": lambda random_, shared: _chat(random_, shared, n=2),
    "long prompt, streamed": _long_chat,
    "completion": _completion,
    "completion, streamed": lambda random_, shared: _completion(random_, shared, stream=True),
    "completion, three prompts": lambda random_, shared: _completion(
        random_, shared, prompt=[words(random_, 4) for _ in range(3)]
    ),
    "schema": _schema,
    "tools": _tools,
    "embeddings": _embeddings,
    "tokenize": _tokenize,
    "responses": _responses,
    "messages": _anthropic,
    "wrong": _wrong,
}
