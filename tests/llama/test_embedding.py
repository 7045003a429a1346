"""Embeddings of an encoder against a numpy forward pass of the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import LlamaGuardError, ModelFileError
from nexa_runtime.llama import MAX_INPUTS, Context, ContextParams, EmbeddingContext, Model
from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.serving.loaded import Kind
from nexa_runtime.serving.loading import open_pool
from scripts.bench.make_model import Shape, write_model
from tests.llama.bert import last_states

SHAPE = Shape("bert", num_layers=3, width=64, inner_width=256, num_heads=4, num_kv_heads=4, context=128)


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    write_model(SHAPE, DEMO_PATH, path, is_f32=True)
    return path


@pytest.fixture(scope="module")
def bert(bert_path: Path) -> Iterator[Model]:
    model = Model.load(bert_path)
    yield model
    model.close()


@pytest.fixture
def context(bert: Model) -> Iterator[EmbeddingContext]:
    made = EmbeddingContext(bert, max_tokens=128, num_threads=2)
    yield made
    made.close()


def reference(path: Path, tokens: Any) -> Any:
    """The mean of bert's last states, of length 1."""
    pooled = last_states(path, SHAPE, tokens).mean(axis=0)
    return pooled / np.linalg.norm(pooled)


def test_vectors_equal_those_of_the_reference(bert_path: Path, context: EmbeddingContext) -> None:
    random = np.random.default_rng(3)
    inputs = [random.integers(3, 2000, size, dtype=np.int32) for size in (1, 7, 30, 60)]
    for tokens, vector in zip(inputs, context.embed(inputs), strict=True):
        assert float(vector @ reference(bert_path, tokens)) >= 0.999
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_what_would_end_the_process_is_refused(context: EmbeddingContext) -> None:
    tokens = np.full(100, 5, dtype=np.int32)
    with pytest.raises(LlamaGuardError, match="200 rows in a batch of 128"):
        context.embed([tokens, tokens])
    with pytest.raises(LlamaGuardError, match="inputs"):
        context.embed([])
    with pytest.raises(LlamaGuardError, match="inputs"):
        context.embed([tokens[:1]] * (MAX_INPUTS + 1))
    with pytest.raises(LlamaGuardError, match="token"):
        context.embed([np.array([-1], dtype=np.int32)])


def test_a_context_of_few_tokens_takes_as_many_inputs_at_most(bert: Model) -> None:
    small = EmbeddingContext(bert, max_tokens=8, num_threads=2)
    tokens = np.full(1, 5, dtype=np.int32)
    assert small.embed([tokens] * 8).shape == (8, SHAPE.width)
    with pytest.raises(LlamaGuardError, match="9 inputs in a call of at most 8"):
        small.embed([tokens] * 9)
    small.close()


def test_an_encoder_has_no_kv_cache_to_generate_with(bert: Model) -> None:
    assert bert.is_encoder
    with pytest.raises(ModelFileError, match="cannot generate"):
        Context(bert, ContextParams(256, 2, 32, 2, 1))


def test_an_encoder_is_loaded_to_embed_only(bert_path: Path) -> None:
    settings = load_settings({"NEXA_MODEL_ID": str(bert_path)})
    loaded = open_pool(settings).default
    assert loaded is not None
    try:
        assert loaded.kinds == {Kind.EMBEDDING}
        assert loaded.max_embedding_tokens == SHAPE.context
    finally:
        loaded.close()
