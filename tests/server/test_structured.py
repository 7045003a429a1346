"""Answers that must have a form, over real HTTP: JSON, schemas, grammars; and what is refused."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.schemas import SCHEMAS
from tests.server.test_api import ANSWER, FRANCE, error_of
from tests.support import LiveServer

HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0}


def form(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_of_a_schema_is_valid_20_times_of_20(server: LiveServer, name: str) -> None:
    def ask(seed: int) -> Any:
        response = server.chat(
            "Go on.", response_format=form(SCHEMAS[name]), seed=seed, max_tokens=600, **HOT
        )
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(20)))
    for answer in answers:
        assert answer["finish_reason"] == "stop"
        jsonschema.validate(json.loads(answer["message"]["content"]), SCHEMAS[name])


def test_there_are_thirty_schemas() -> None:
    assert len(SCHEMAS) == 30


def test_streamed_json_is_valid_and_comes_in_parts(server: LiveServer) -> None:
    schema = SCHEMAS["an order"]
    with server.stream("Go on.", response_format=form(schema), seed=9, temperature=1.0) as stream:
        text, reason, events = stream.read()
    assert reason == "stop"
    assert len(events) > 10
    jsonschema.validate(json.loads(text), schema)


def test_any_json_object(server: LiveServer) -> None:
    answer = server.chat(
        "Go on.", response_format={"type": "json_object"}, temperature=0, max_tokens=200
    ).json()["choices"][0]
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["message"]["content"]), dict)
    assert answer["message"]["content"].startswith("{")


def test_a_strict_schema_closes_its_objects(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    for seed in range(10):
        body = server.chat("Go on.", response_format=form(schema, strict=True), seed=seed, **HOT).json()
        assert json.loads(body["choices"][0]["message"]["content"]) == {"a": 1}


def test_an_answer_that_is_cut_says_so(server: LiveServer) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 100}
    body = server.chat("Go on.", response_format=form(schema), max_tokens=10).json()
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_regular_expression_a_choice_and_grammars(server: LiveServer) -> None:
    def text(**fields: Any) -> str:
        body = server.chat("Go on.", max_tokens=60, **HOT, **fields).json()
        assert body["choices"][0]["finish_reason"] == "stop"
        return str(body["choices"][0]["message"]["content"])

    assert re.fullmatch(r"[a-f]{3}-[0-9]+", text(regex=r"[a-f]{3}-[0-9]{1,9}", seed=1))
    assert text(guided_choice=["positive", "negative", "pos"], seed=2) in ("positive", "negative", "pos")
    lark = 'start: "yes" | "no" " " NUMBER\nNUMBER: /[0-9]{1,3}/'
    assert re.fullmatch(r"yes|no [0-9]{1,3}", text(grammar=lark, seed=3))
    gbnf = 'root ::= item ("," item){0,2}\nitem ::= [a-c]+ "!"\n'
    assert re.fullmatch(r"[a-c]+!(,[a-c]+!){0,2}", text(grammar=gbnf, seed=4))


def test_completions_take_a_form_too(server: LiveServer) -> None:
    body = {"prompt": "Answer:", "guided_choice": ["yes", "no"], "n": 3, "temperature": 1.0}
    choices = server.http.post("/v1/completions", json=body).json()["choices"]
    assert {one["text"] for one in choices} <= {"yes", "no"}


def test_logprobs_of_a_constrained_answer_have_every_token(server: LiveServer) -> None:
    schema = SCHEMAS["an integer in a range"]
    body = server.chat("Go on.", response_format=form(schema), logprobs=True, seed=3).json()
    choice = body["choices"][0]
    spelled = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
    assert spelled.decode() == choice["message"]["content"]
    jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED: dict[str, dict[str, Any]] = {
    "100 levels": {"response_format": form(deep(100))},
    "a remote reference": {"response_format": form({"$ref": "https://example.org/schema.json"})},
    "a reference to nothing": {"response_format": form({"$ref": "#/$defs/none"})},
    "an unsupported keyword": {"response_format": form({"type": "array", "contains": {"type": "null"}})},
    "no schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    "an unknown type": {"response_format": {"type": "yaml"}},
    "a large enum": {"response_format": form({"enum": [f"value number {n}" for n in range(50_000)]})},
    "a bad expression": {"regex": "[a-"},
    "an expression of many": {"regex": "((a{0,900}){0,900}){0,900}"},
    "a bad grammar": {"grammar": "start: nothing"},
    "a bad GBNF": {"grammar": 'root ::= "a" | ('},
    "a deep GBNF": {"grammar": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000},
    "no choice": {"guided_choice": []},
    "two forms": {"regex": "a", "guided_choice": ["a"]},
    "a form and forced tools": {
        "regex": "a",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_form_is_refused_with_the_reason(server: LiveServer, name: str) -> None:
    response = server.chat("Hello", **REFUSED[name])
    assert response.status_code == 400, response.text[:300]
    error = error_of(response)
    assert error["param"]
    assert len(error["message"]) < 600


COSTLY: dict[str, dict[str, Any]] = {
    "very many optional properties": {
        "type": "object",
        "properties": {f"p{n}": {"type": "boolean"} for n in range(600)},
        "additionalProperties": False,
    },
    "without an end": {
        "type": "object",
        "properties": {"a": {"$ref": "#"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "very many items": {"type": "array", "items": {"const": 1}, "minItems": 1_000_000},
    "a character that stands for something else": {"const": "a\ufdd0b"},
}


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_form_that_fails_only_when_it_is_followed_is_the_clients_error_too(
    server: LiveServer, name: str, is_streamed: bool
) -> None:
    response = server.chat("Go on.", response_format=form(COSTLY[name]), stream=is_streamed, max_tokens=20)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_request"


def test_hostile_schemas_disturb_nobody(server: LiveServer) -> None:
    """While one client sends schemas that are built to be slow, another's answers are as ever."""
    is_over = threading.Event()
    hostile: list[Any] = [
        {"response_format": form({"type": "string", "pattern": "(a|b|ab){1,400}(c|d){1,400}$"})},
        {"response_format": form(deep(60))},
        {"response_format": form({"anyOf": [deep(n % 40) for n in range(200)]})},
        {"regex": "(x{0,500}y{0,500}){0,100}"},
        REFUSED["a large enum"],
    ]

    def attack() -> set[int]:
        seen = set()
        while not is_over.is_set():
            seen |= {server.chat("Hi", max_tokens=5, **fields).status_code for fields in hostile}
        return seen

    with ThreadPoolExecutor(1) as pool:
        attacking = pool.submit(attack)
        try:
            for _ in range(30):
                assert server.chat(FRANCE, temperature=0).json()["choices"][0]["message"]["content"] == ANSWER
        finally:
            is_over.set()
        assert attacking.result() <= {200, 400, 500}
