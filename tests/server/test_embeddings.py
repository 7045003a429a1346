"""``/v1/embeddings`` over real HTTP, and beside a flood of chats."""

import base64
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nexa_runtime.serving.library import DEMO_PATH
from scripts.bench.make_model import Shape, write_model
from tests.support import LiveServer, wait_until


def embed(server: LiveServer, given: object, **fields: object) -> httpx.Response:
    return server.http.post("/v1/embeddings", json={"input": given, **fields})


def vectors(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], dtype=np.float32)


def test_one_text_is_one_vector_of_length_one(server: LiveServer) -> None:
    response = embed(server, "What is the capital of France?")
    (vector,) = vectors(response)
    assert len(vector) == server.loaded.model.embedding_size
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    body = response.json()
    assert (body["object"], body["model"]) == ("list", "demo")
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 5


def test_many_inputs_give_the_vectors_they_give_alone(server: LiveServer) -> None:
    texts = [f"Text number {index} " * (1 + index % 7) for index in range(150)]
    together = vectors(embed(server, texts))
    assert together.shape[0] == 150
    for index in (0, 3, 77, 149):
        (alone,) = vectors(embed(server, texts[index]))
        assert float(alone @ together[index]) > 0.9999


def test_text_and_its_tokens_agree(server: LiveServer) -> None:
    tokens = server.loaded.model.vocab.tokenize("Hello there", parse_special=False).tolist()
    by_text, by_ids = vectors(embed(server, ["Hello there"])), vectors(embed(server, [tokens]))
    assert float(by_text[0] @ by_ids[0]) > 0.9999
    assert float(vectors(embed(server, tokens))[0] @ by_text[0]) > 0.9999


def test_base64_and_float_agree(server: LiveServer) -> None:
    (floats,) = vectors(embed(server, "Hello"))
    data = embed(server, "Hello", encoding_format="base64").json()["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(data), dtype="<f4"), floats)


def test_dimensions_cut_and_scale_again(server: LiveServer) -> None:
    (whole,) = vectors(embed(server, "Hello"))
    (cut,) = vectors(embed(server, "Hello", dimensions=16))
    assert np.allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": ""}, 400, "input[0]"),
        ({"input": []}, 400, "input"),
        ({"input": 5}, 400, "input"),
        ({"input": ["a", 5]}, 400, "input"),
        ({"input": [[]]}, 400, "input"),
        ({"input": [10**9]}, 400, "input[0]"),
        ({"input": ["x"] * 2049}, 400, "input"),
        ({"input": ["fine", "word " * 3000]}, 400, "input[1]"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "dimensions": 100_000}, 400, "dimensions"),
        ({"input": "a", "model": "none"}, 404, "model"),
    ],
)
def test_what_is_refused(server: LiveServer, fields: dict[str, object], status: int, param: str) -> None:
    response = server.http.post("/v1/embeddings", json=fields)
    assert response.status_code == status
    assert str(response.json()["error"]["param"]).startswith(param)


def test_a_long_input_names_its_place_and_the_counts(server: LiveServer) -> None:
    error = embed(server, [[5], [5] * 3000]).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == "input[1] has 3000 tokens; at most 2048 are embedded."


def test_embeddings_and_chats_progress_beside_each_other(make_server: Any) -> None:
    server = make_server()
    is_over = threading.Event()
    answers: list[int] = []

    def flood() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not is_over.is_set():
                body = {
                    "messages": [{"role": "user", "content": "Hello"}],
                    "ignore_eos": True,
                    "max_tokens": 50,
                }
                answers.append(client.post("/v1/chat/completions", json=body).status_code)

    threads = [threading.Thread(target=flood) for _ in range(12)]
    for thread in threads:
        thread.start()
    try:
        assert wait_until(lambda: server.engine.stats.num_running == 8)
        for index in range(5):
            before = len(answers)
            assert len(vectors(embed(server, [f"Text {index} {number}" for number in range(40)]))) == 40
            assert wait_until(lambda before=before: len(answers) > before)  # type: ignore[misc]
            assert server.engine.stats.num_running > 0
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {200}
    assert wait_until(server.is_idle)


def test_a_client_that_leaves_is_forgotten(make_server: Any) -> None:
    server = make_server()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json={"input": ["word " * 300] * 2000}, timeout=0.5)
    assert wait_until(server.is_idle)
    lane = server.engine.embedding
    assert lane is not None
    assert wait_until(lambda: not lane._jobs)


def test_who_leaves_while_texts_are_tokenized_and_the_server_stops(make_server: Any) -> None:
    """The vocabulary is not freed under the thread that reads it: that would end the process."""
    server = make_server()
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/embeddings", json={"input": ["word " * 300] * 2000}, timeout=0.1)
    server.stop()


def test_a_model_that_only_embeds(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    write_model(Shape("bert", 2, 64, 128, 4, 4, 64), DEMO_PATH, path)
    server = make_server(NEXA_MODEL_ID=str(path))
    assert vectors(embed(server, ["Hello", "World"])).shape == (2, 64)
    refused = server.chat("Hello")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "model_kind_mismatch"
    assert server.http.get("/v1/models").json()["data"][0]["kinds"] == ["embedding"]
    assert server.http.get("/readyz").status_code == 200


def test_a_batch_never_exceeds_a_small_encoder(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    write_model(Shape("bert", 2, 64, 128, 4, 4, 64), DEMO_PATH, path)
    server = make_server(NEXA_MODEL_ID=str(path), NEXA_STEP_TOKENS=2048)
    assert vectors(embed(server, [f"Text number {index} of many" for index in range(60)])).shape == (60, 64)
