"""``/tokenize``, ``/detokenize``, ``/apply-template`` and ``/v1/chat/completions/input_tokens``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama import Model
from nexa_runtime.server.protocol.tokens import MAX_CONTENT_BYTES, DetokenizeRequest, detokenized
from nexa_runtime.server.protocol.wire import parse
from tests.llama.reranker import BOS, EOS, write_encoder
from tests.server.bodies import HI, tool
from tests.support import LiveServer

TEXT = "Hello, ¿qué tal? 日本 🙂<|im_end|>"


def ask(server: LiveServer, address: str, **body: object) -> Any:
    response = server.http.post(address, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text_becomes_tokens_and_these_the_text_again(server: LiveServer) -> None:
    tokens = ask(server, "/tokenize", content=TEXT)["tokens"]
    assert tokens == server.loaded.model.vocab.tokenize(TEXT, parse_special=True).tolist()
    assert ask(server, "/detokenize", tokens=tokens, model="demo") == {"content": TEXT}
    assert ask(server, "/tokenize", content="") == {"tokens": []}
    assert ask(server, "/detokenize", tokens=[]) == {"content": ""}


def test_control_tokens_are_spelled_out_or_not(server: LiveServer) -> None:
    end = server.loaded.model.vocab.control_texts["<|im_end|>"]
    assert ask(server, "/tokenize", content=TEXT)["tokens"][-1] == end
    assert end not in ask(server, "/tokenize", content=TEXT, parse_special=False)["tokens"]


def test_pieces_are_texts_or_else_bytes(server: LiveServer) -> None:
    tokens = ask(server, "/tokenize", content=TEXT, with_pieces=True)["tokens"]
    assert [one["id"] for one in tokens] == ask(server, "/tokenize", content=TEXT)["tokens"]
    pieces = [one["piece"] for one in tokens]
    assert {type(piece) for piece in pieces} == {str, list}
    assert b"".join(bytes(one) if isinstance(one, list) else one.encode() for one in pieces) == TEXT.encode()


def test_a_long_text_is_counted_whole(server: LiveServer) -> None:
    content = "word " * 200_000
    tokens = ask(server, "/tokenize", content=content, with_pieces=True)["tokens"]
    assert len(tokens) >= 200_000
    assert "".join(one["piece"] for one in tokens) == content


def test_any_kind_of_model_has_a_tokenizer(make_server: Callable[..., LiveServer], tmp_path: Path) -> None:
    server = make_server(NEXA_MODEL_ID=str(write_encoder(tmp_path / "ranker.gguf")))
    plain = ask(server, "/tokenize", content="Hello")["tokens"]
    assert ask(server, "/tokenize", content="Hello", add_special=True)["tokens"] == [BOS, *plain, EOS]
    for address in ("/apply-template", "/v1/chat/completions/input_tokens"):
        refused = server.http.post(address, json={"messages": HI})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_kind_mismatch")


@pytest.mark.parametrize(
    ("address", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "content"),
        ("/tokenize", {"content": 5}, 400, "content"),
        ("/tokenize", {"content": "a" * (2**20 + 1)}, 400, "content"),
        ("/tokenize", {"content": "a", "with_pieces": "yes"}, 400, "with_pieces"),
        ("/tokenize", {"content": "a", "model": "none"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, 400, "tokens"),
        ("/detokenize", {"tokens": [[1]]}, 400, "tokens"),
        ("/detokenize", {"tokens": [True]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [2048]}, 400, "tokens"),
        ("/detokenize", {"tokens": [2**63]}, 400, "tokens"),
        ("/apply-template", {}, 400, "messages"),
        ("/apply-template", {"messages": HI, "functions": [{"name": "f"}]}, 400, "functions"),
        ("/v1/chat/completions/input_tokens", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions/input_tokens", {"messages": HI, "model": "none"}, 404, "model"),
    ],
)
def test_what_is_refused(
    server: LiveServer, address: str, body: dict[str, object], status: int, param: str
) -> None:
    response = server.http.post(address, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize("tokens", ["a", [1, "a"], ["a"], [[1]], [1.0], [None]])
def test_what_is_no_list_of_tokens_is_said_to_be_none(tokens: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"^tokens: must be a list of token ids\.$"):
        parse(DetokenizeRequest, {"tokens": tokens})


def test_tokens_that_make_too_much_text_are_refused(model: Model) -> None:
    pieces = model.vocab.special_pieces
    longest = max(range(model.vocab.size), key=lambda token: len(pieces[token]))
    tokens = [longest] * (MAX_CONTENT_BYTES // len(pieces[longest]) + 1)
    request = parse(DetokenizeRequest, {"tokens": tokens})
    with pytest.raises(InvalidRequestError, match="bytes of text"):
        detokenized(request, model.vocab)


def test_what_nobody_reads_is_named(server: LiveServer) -> None:
    for address, body in (
        ("/tokenize", {"content": "a"}),
        ("/detokenize", {"tokens": [5]}),
        ("/apply-template", {"messages": HI}),
        ("/v1/chat/completions/input_tokens", {"messages": HI}),
    ):
        response = server.http.post(address, json={**body, "mood": "good"})
        assert (response.status_code, response.headers["x-nexa-ignored"]) == (200, "mood")


def test_the_prompt_and_its_length_are_those_of_the_chat(server: LiveServer) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Is <|im_end|> a token?"}]},
    ]
    body = {"messages": messages, "tools": [tool()], "temperature": 0}
    prompt = ask(server, "/apply-template", **body)["prompt"]
    assert "Be short." in prompt
    assert "Is <|im_end|> a token?" in prompt
    assert "get_time" in prompt
    counted = ask(server, "/v1/chat/completions/input_tokens", **body)
    usage = ask(server, "/v1/chat/completions", **body, max_tokens=1)["usage"]
    assert counted == {"object": "response.input_tokens", "input_tokens": usage["prompt_tokens"]}


def test_the_prompt_of_a_plain_chat_has_its_tokens(server: LiveServer) -> None:
    prompt = ask(server, "/apply-template", messages=HI)["prompt"]
    tokens = ask(server, "/tokenize", content=prompt)["tokens"]
    assert len(tokens) == ask(server, "/v1/chat/completions/input_tokens", messages=HI)["input_tokens"]


def test_they_are_requests_like_any_other(make_server: Callable[..., LiveServer], tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"acme": {"TENANT_HARD_LIMIT_RPM": 4}, "demo": {}}}))
    server = make_server(NEXA_TENANTS_FILE=str(file), NEXA_API_KEY="key")
    bodies = {
        "/tokenize": {"content": "a"},
        "/detokenize": {"tokens": [5]},
        "/apply-template": {"messages": HI},
        "/v1/chat/completions/input_tokens": {"messages": HI},
    }

    def status(address: str, headers: dict[str, str]) -> int:
        return httpx.post(server.url + address, json=bodies[address], headers=headers).status_code

    assert {status(address, {}) for address in bodies} == {401}
    headers = {"authorization": "Bearer key", "x-tenant-id": "acme"}
    assert [status(address, headers) for address in bodies] == [200] * 4
    assert {status(address, headers) for address in bodies} == {429}
    assert not server.app.dispatcher.num_open
