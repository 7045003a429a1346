"""Several choices of one prompt, log-probabilities, and the sampling fields, over real HTTP."""

import json
import math
from typing import Any

import numpy as np
import pytest

from nexa_runtime.llama import Context, ContextParams, DecodeStatus
from tests.server.test_api import ANSWER, FRANCE, error_of
from tests.support import LiveServer, wait_until

LONG = "Be polite. " * 60


def test_several_choices_compute_their_prompt_once(make_server: Any) -> None:
    server = make_server()
    body = server.chat(LONG + FRANCE, n=4, max_tokens=8, temperature=1.2, seed=3).json()
    assert wait_until(server.is_idle)
    usage = body["usage"]
    assert [one["index"] for one in body["choices"]] == [0, 1, 2, 3]
    assert len({one["message"]["content"] for one in body["choices"]}) > 1
    # The last token of the prompt is computed once for each choice, for its logits.
    assert server.totals.num_prefill_rows == usage["prompt_tokens"] + 3
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens"] > 8
    again = server.chat(LONG + FRANCE, n=2, max_tokens=2).json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1


def test_the_first_of_several_choices_is_the_one_that_comes_alone(server: LiveServer) -> None:
    fields: Any = {"temperature": 1.0, "seed": 11, "max_tokens": 12}
    alone = server.chat("Hello", **fields).json()["choices"][0]["message"]["content"]
    several = server.chat("Hello", n=3, **fields).json()["choices"]
    assert several[0]["message"]["content"] == alone


def test_streamed_choices_come_interleaved_and_each_ends(server: LiveServer) -> None:
    with server.stream(FRANCE, n=3, temperature=0) as stream:
        events = list(stream.events())
    assert events.pop() == "[DONE]"
    texts = ["", "", ""]
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [ANSWER] * 3
    assert sum(event["choices"][0]["finish_reason"] == "stop" for event in events) == 3


def token_ids(server: LiveServer, content: list[Any]) -> list[int]:
    """The ids of tokens that are told by their bytes."""
    pieces = {bytes(piece): token for token, piece in enumerate(server.loaded.model.vocab.special_pieces)}
    return [pieces[bytes(one["bytes"])] for one in content]


def reference_logprobs(server: LiveServer, prompt: list[int], answer: list[int]) -> list[Any]:
    """Natural logarithms of the softmax over llama.cpp's logits after the prompt and each token."""
    model = server.loaded.model
    tokens = np.array([*prompt, *answer], dtype=np.int32)
    context = Context(model, ContextParams(512, 1, 512, 1, 2))
    try:
        batch = context.make_batch()
        rows = []
        position = 0
        parts = [tokens[: len(prompt)], *(tokens[at : at + 1] for at in range(len(prompt), len(tokens) - 1))]
        for part in parts:
            batch.clear()
            batch.add(0, part, position, wants_logits=True)
            assert context.decode(batch) is DecodeStatus.OK
            position += len(part)
            row = context.logits(1)[0].astype(np.float64)
            rows.append(row - row.max() - math.log(np.exp(row - row.max()).sum()))
        return rows
    finally:
        context.close()


def test_logprobs_are_the_softmax_of_the_raw_logits(make_server: Any) -> None:
    server = make_server()  # whose cache has nothing that was computed in steps of another size
    body = server.chat(FRANCE, logprobs=True, top_logprobs=5, temperature=1.5, seed=4, max_tokens=12).json()
    choice = body["choices"][0]
    content = choice["logprobs"]["content"]
    assert content
    vocab = server.loaded.model.vocab
    rendered = f"<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n"
    prompt = vocab.tokenize(rendered, parse_special=True).tolist()
    answer = token_ids(server, content)
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == choice["message"]["content"]
    for one, row, token in zip(content, reference_logprobs(server, prompt, answer), answer, strict=True):
        assert one["logprob"] == pytest.approx(row[token], abs=1e-3)
        best = np.sort(row)[::-1][:5]
        assert [each["logprob"] for each in one["top_logprobs"]] == pytest.approx(best, abs=1e-3)


def test_streamed_logprobs_are_the_same(server: LiveServer) -> None:
    fields: Any = {"logprobs": True, "top_logprobs": 2, "temperature": 0, "max_tokens": 8}
    whole = server.chat(FRANCE, **fields).json()["choices"][0]["logprobs"]["content"]
    with server.stream(FRANCE, **fields) as stream:
        events = [event for event in stream.events() if event != "[DONE]"]
    parts = [event["choices"][0]["logprobs"] for event in events]
    streamed = [one for part in parts if part for one in part["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in whole]


def test_legacy_logprobs_and_token_ids(server: LiveServer) -> None:
    body = {"prompt": "The capital of", "max_tokens": 4, "logprobs": 3, "temperature": 0}
    choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 4
    assert logprobs["text_offset"][0] == 0
    as_ids = server.http.post("/v1/completions", json=body | {"return_tokens_as_token_ids": True}).json()
    assert all(one.startswith("token_id:") for one in as_ids["choices"][0]["logprobs"]["tokens"])


def test_the_best_of_several(server: LiveServer) -> None:
    body = {"prompt": "Hello", "max_tokens": 6, "temperature": 1.5, "seed": 1, "ignore_eos": True}
    all_of_them = server.http.post("/v1/completions", json=body | {"n": 5, "logprobs": 0}).json()["choices"]
    means = [np.mean(one["logprobs"]["token_logprobs"]) for one in all_of_them]
    (best,) = server.http.post("/v1/completions", json=body | {"best_of": 5}).json()["choices"]
    assert best["index"] == 0
    assert best["text"] == all_of_them[int(np.argmax(means))]["text"]
    assert best["logprobs"] is None


def test_echo_puts_the_prompt_in_front(server: LiveServer) -> None:
    prompt = f"<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n"
    body = {"prompt": prompt, "echo": True, "temperature": 0}
    choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == prompt + ANSWER
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == prompt + ANSWER


def test_a_suffix_needs_a_model_that_fills_in(server: LiveServer) -> None:
    response = server.http.post("/v1/completions", json={"prompt": "a", "suffix": "b"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "suffix"


def test_stop_token_ids_and_min_tokens(server: LiveServer) -> None:
    told = server.chat(FRANCE, temperature=0, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    stop = token_ids(server, told)[5]
    body = server.chat(FRANCE, temperature=0, stop_token_ids=[stop]).json()
    first = token_ids(server, told).index(stop)
    assert body["choices"][0]["message"]["content"] == "".join(one["token"] for one in told[:first])
    assert body["choices"][0]["finish_reason"] == "stop"
    longer = server.chat(FRANCE, temperature=0, min_tokens=30, max_tokens=40).json()
    assert longer["usage"]["completion_tokens"] >= 30
    refused = server.chat(FRANCE, stop_token_ids=[10**6])
    assert (refused.status_code, error_of(refused)["param"]) == (400, "stop_token_ids")


def test_a_final_message_is_continued(server: LiveServer) -> None:
    messages = [{"role": "user", "content": FRANCE}, {"role": "assistant", "content": "The capital of"}]
    body = {"messages": messages, "continue_final_message": True, "temperature": 0}
    choice = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] == " France is Paris."


def test_timings_come_where_they_are_asked_for(server: LiveServer) -> None:
    body = server.chat(FRANCE, timings=True).json()
    assert body["timings"]["predicted_n"] == body["usage"]["completion_tokens"]
    assert body["timings"]["prompt_ms"] > 0
    assert "timings" not in server.chat(FRANCE).json()


EXTREMES: list[dict[str, Any]] = [
    {"typical_p": 0.0}, {"typical_p": 0.3}, {"top_n_sigma": 0.5}, {"top_n_sigma": 0.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0}, {"xtc_probability": 1.0, "xtc_threshold": 0.5},
    {"dry_multiplier": 10.0, "dry_base": 4.0, "dry_allowed_length": 1, "dry_penalty_last_n": -1},
    {"dry_multiplier": 0.8, "dry_sequence_breakers": ["\n", "é", "a b c"]},
    {"mirostat": 1}, {"mirostat": 2, "mirostat_tau": 0.0, "mirostat_eta": 1.0},
    {"dynatemp_range": 0.7, "dynatemp_exponent": 3.0}, {"repeat_last_n": -1, "repeat_penalty": 1.3},
    {"repeat_last_n": 0, "repeat_penalty": 2.0}, {"samplers": ["top_k", "temperature"]}, {"samplers": []},
    {"samplers": ["temperature", "min_p", "top_p", "typ_p", "xtc", "dry", "penalties", "top_n_sigma"]},
]  # fmt: skip


@pytest.mark.parametrize("fields", EXTREMES, ids=str)
def test_every_sampling_field_is_taken_at_its_extremes(server: LiveServer, fields: dict[str, Any]) -> None:
    body = server.chat(FRANCE, temperature=1.0, seed=5, max_tokens=20, **fields)
    assert body.status_code == 200, body.text
    assert "x-nexa-ignored" not in body.headers
    assert body.json()["usage"]["completion_tokens"] > 0
