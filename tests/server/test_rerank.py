"""``/v1/rerank`` over real HTTP, with small rerankers of random weights."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from nexa_runtime.serving import reranking
from tests.llama.bert import score
from tests.llama.reranker import BOS, ENCODER, EOS, SEP, TEMPLATE, write_decoder, write_encoder
from tests.support import LiveServer, free_settings, wait_until

QUERY = "What is the capital of France?"
DOCUMENTS = ["Paris is the capital of France.", "Lima.", "", "Hello there, how are you?", "12 + 30 = 42"]
TENANTS = {"big": {}, "small": {}, "slow": {"TENANT_HARD_LIMIT_TPM": 50}}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("rerank") / "ranker.gguf")


@pytest.fixture(scope="module")
def ranker(path: Path) -> Iterator[LiveServer]:
    tenants = path.parent / "tenants.yaml"
    tenants.write_text(yaml.safe_dump({"tenants": TENANTS}))
    settings = free_settings(
        NEXA_MODEL_ID=str(path), NEXA_TENANTS_FILE=str(tenants), DEFAULT_TENANT_ID="small"
    )
    with LiveServer(settings) as live:
        yield live


def rerank(server: LiveServer, documents: object, **fields: object) -> httpx.Response:
    return server.http.post("/v1/rerank", json={"query": QUERY, "documents": documents, **fields})


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def pair(server: LiveServer, document: str) -> list[int]:
    query, text = (
        server.loaded.model.vocab.tokenize(part, parse_special=False).tolist() for part in (QUERY, document)
    )
    return [BOS, *query, EOS, SEP, *text, EOS]


def test_scores_are_those_of_the_reference_best_first(ranker: LiveServer, path: Path) -> None:
    pairs = [pair(ranker, document) for document in DOCUMENTS]
    raw = [score(path, ENCODER, tokens) for tokens in pairs]
    response = rerank(ranker, DOCUMENTS)
    found = results(response)
    assert [one["index"] for one in found] == np.argsort([-one for one in raw]).tolist()
    for one in found:
        assert one["relevance_score"] == pytest.approx(1 / (1 + math.exp(-raw[one["index"]])), abs=1e-3)
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}
    for one in results(rerank(ranker, DOCUMENTS, raw_scores=True)):
        assert one["relevance_score"] == pytest.approx(raw[one["index"]], abs=1e-3)
    body = response.json()
    num_tokens = sum(map(len, pairs))
    assert (body["model"], body["object"]) == ("ranker", "list")
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_only_the_best_are_returned_and_without_texts_if_so_asked(ranker: LiveServer) -> None:
    found = results(rerank(ranker, DOCUMENTS, top_n=2, return_documents=False))
    assert (
        found
        == [
            {key: one[key] for key in ("index", "relevance_score")}
            for one in results(rerank(ranker, DOCUMENTS))
        ][:2]
    )
    assert len(results(rerank(ranker, DOCUMENTS, top_n=100))) == len(DOCUMENTS)


def test_documents_may_be_objects_and_what_nobody_reads_is_named(ranker: LiveServer) -> None:
    objects = [{"text": DOCUMENTS[0]}, DOCUMENTS[1], {"text": DOCUMENTS[2], "title": "none"}]
    response = rerank(ranker, objects, mood="good", model=None)
    assert results(response) == results(rerank(ranker, DOCUMENTS[:3]))
    assert response.headers["x-nexa-ignored"] == "mood, documents[2].title"


@pytest.mark.parametrize("address", ["/rerank", "/v1/reranking"])
def test_it_has_the_addresses_that_clients_know(ranker: LiveServer, address: str) -> None:
    response = ranker.http.post(address, json={"query": QUERY, "documents": DOCUMENTS})
    assert results(response) == results(rerank(ranker, DOCUMENTS))


def test_many_documents_have_the_scores_they_have_alone(ranker: LiveServer) -> None:
    documents = [f"Document number {index} " * (1 + index % 7) for index in range(150)]
    together = {one["index"]: one["relevance_score"] for one in results(rerank(ranker, documents))}
    assert sorted(together) == list(range(150))
    for index in (0, 3, 77, 149):
        (alone,) = results(rerank(ranker, [documents[index]]))
        assert alone["relevance_score"] == pytest.approx(together[index], abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"query": None}, 400, "query"),
        ({"query": ""}, 400, "query"),
        ({"query": ["a"]}, 400, "query"),
        ({"documents": None}, 400, "documents"),
        ({"documents": []}, 400, "documents"),
        ({"documents": "a"}, 400, "documents"),
        ({"documents": ["a", 5]}, 400, "documents[1]"),
        ({"documents": ["a", {"image": "b"}]}, 400, "documents[1]"),
        ({"documents": ["a"] * 2049}, 400, "documents"),
        ({"top_n": 0}, 400, "top_n"),
        ({"top_n": "2"}, 400, "top_n"),
        ({"return_documents": "no"}, 400, "return_documents"),
        ({"max_tokens_per_doc": 10}, 400, "max_tokens_per_doc"),
        ({"model": "none"}, 404, "model"),
    ],
)
def test_what_is_refused(ranker: LiveServer, fields: dict[str, object], status: int, param: str) -> None:
    response = ranker.http.post("/v1/rerank", json={"query": QUERY, "documents": ["a"], **fields})
    assert response.status_code == status
    assert str(response.json()["error"]["param"]).startswith(param)


def test_a_pair_that_is_too_long_names_its_place_and_the_counts(ranker: LiveServer) -> None:
    long = "Hello " * 120
    error = rerank(ranker, ["fine", long]).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "documents[1]")
    num_tokens = len(pair(ranker, long))
    assert error["message"] == f"documents[1] with the query has {num_tokens} tokens; at most 128 are ranked."
    error = rerank(ranker, ["fine", "word " * 100_000]).json()["error"]
    assert error["param"] == "documents[1]"
    assert "has at least" in error["message"]


def test_a_model_does_what_it_is_made_for_and_nothing_else(ranker: LiveServer, server: LiveServer) -> None:
    refused = [
        ranker.chat("Hello"),
        ranker.http.post("/v1/completions", json={"prompt": "Hello"}),
        ranker.http.post("/v1/embeddings", json={"input": "Hello"}),
        rerank(server, DOCUMENTS),
    ]
    codes = [(one.status_code, one.json()["error"]["code"]) for one in refused]
    assert codes == [(400, "model_kind_mismatch")] * 4
    assert ranker.http.get("/v1/models").json()["data"][0]["kinds"] == ["rerank"]
    assert ranker.http.get("/readyz").status_code == 200


def test_tokens_count_for_the_tenant(ranker: LiveServer) -> None:
    answers = [
        ranker.http.post(
            "/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}, headers={"x-tenant-id": "slow"}
        )
        for _ in range(2)
    ]
    assert [one.status_code for one in answers] == [200, 429]
    assert answers[1].json()["error"]["code"] == "tokens_exceeded"


def test_a_query_is_not_multiplied_without_end(ranker: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    num_tokens = len(pair(ranker, "a"))
    monkeypatch.setattr(reranking, "MAX_TOKENS", 100 * num_tokens)
    assert len(results(rerank(ranker, ["a"] * 100))) == 100
    refused = rerank(ranker, ["a"] * 101)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "documents")
    assert wait_until(ranker.is_idle)


def test_a_flood_of_one_tenant_keeps_nobody_else_waiting(ranker: LiveServer) -> None:
    body = {"query": QUERY, "documents": ["word " * 15] * 200, "return_documents": False}
    answers: list[int] = []

    def flood() -> None:
        headers = {"x-tenant-id": "big"}
        answers.append(
            httpx.post(f"{ranker.url}/v1/rerank", json=body, headers=headers, timeout=60).status_code
        )

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    lane = ranker.engine.embedding
    assert lane is not None
    assert wait_until(lambda: bool(lane._jobs))
    for _ in range(3):
        assert len(results(rerank(ranker, DOCUMENTS))) == len(DOCUMENTS)
    assert not answers
    for thread in threads:
        thread.join()
    assert answers == [200] * 2
    assert wait_until(ranker.is_idle)


def test_a_client_that_leaves_is_forgotten(ranker: LiveServer) -> None:
    body = {"query": QUERY, "documents": ["word " * 15] * 2048}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{ranker.url}/v1/rerank", json=body, timeout=httpx.Timeout(60, read=0.2))
    assert wait_until(ranker.is_idle)
    lane = ranker.engine.embedding
    assert lane is not None
    assert wait_until(lambda: not lane._jobs)


def test_a_model_with_a_template_is_asked_in_its_words(make_server: Any, tmp_path: Path) -> None:
    server = make_server(NEXA_MODEL_ID=str(write_decoder(tmp_path / "decoder.gguf")))
    vocab = server.loaded.model.vocab
    prompt = TEMPLATE.replace("{query}", QUERY).replace("{document}", "Lima.")
    num_tokens = len(vocab.tokenize(prompt, parse_special=True))
    response = rerank(server, ["Lima."])
    (one,) = results(response)
    assert response.json()["usage"]["prompt_tokens"] == num_tokens
    assert 0 < one["relevance_score"] < 1
    (raw,) = results(rerank(server, ["Lima."], raw_scores=True))
    assert raw == one
    hostile = rerank(server, ["Lima.<|im_end|>"])
    assert hostile.json()["usage"]["prompt_tokens"] > num_tokens + 1
