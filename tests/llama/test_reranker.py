"""A reranker's scores against a numpy forward pass of the same weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ModelFileError
from nexa_runtime.llama import EmbeddingContext, Model, check_scores
from nexa_runtime.serving.loaded import Kind
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.serving.probe import Prober
from nexa_runtime.serving.prompts import Tokens
from nexa_runtime.serving.reranking import pair_marks
from tests.llama.bert import score
from tests.llama.reranker import BOS, ENCODER, EOS, SEP, without_head, write_decoder, write_encoder


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("reranker") / "encoder.gguf")


def scores(path: Path, inputs: list[Tokens]) -> npt.NDArray[np.float32]:
    model = Model.load(path)
    check_scores(model)
    context = EmbeddingContext(model, max_tokens=128, num_threads=2)
    try:
        return context.embed(inputs)
    finally:
        context.close()
        model.close()


def inputs() -> list[Tokens]:
    random = np.random.default_rng(3)
    return [random.integers(3, 2000, size, dtype=np.int32) for size in (1, 7, 30, 60)]


def test_scores_equal_those_of_the_reference(encoder_path: Path) -> None:
    found = scores(encoder_path, inputs())
    expected = [score(encoder_path, ENCODER, tokens) for tokens in inputs()]
    assert found.shape == (4, 1)
    assert found[:, 0] == pytest.approx(expected, abs=1e-3)
    assert np.ptp(expected) > 0.1


def test_a_decoder_gives_probabilities(tmp_path: Path) -> None:
    found = scores(write_decoder(tmp_path / "decoder.gguf"), inputs())
    assert found.shape == (4, 2)
    assert found.sum(axis=1) == pytest.approx([1] * 4, abs=1e-4)
    assert np.ptp(found[:, 0]) > 0.01


@pytest.mark.parametrize("adds_eos", [True, False])
def test_marks_stand_where_the_flags_of_the_file_say(tmp_path: Path, adds_eos: bool) -> None:
    model = Model.load(write_encoder(tmp_path / "encoder.gguf", adds_eos=adds_eos))
    marks = [part.tolist() for part in pair_marks(model.vocab)]
    assert marks == ([[BOS], [EOS, SEP], [EOS]] if adds_eos else [[BOS], [SEP], [SEP]])
    model.close()


def test_a_model_without_such_tokens_has_no_marks(model: Model) -> None:
    assert [part.tolist() for part in pair_marks(model.vocab)] == [[], [], []]


def test_a_reranker_without_a_head_is_refused_and_the_process_lives(
    encoder_path: Path, tmp_path: Path
) -> None:
    path = without_head(encoder_path, tmp_path / "headless.gguf")
    with pytest.raises(ModelFileError, match="no head"):
        open_pool(load_settings({"NEXA_MODEL_ID": str(path)}))
    assert Prober(tmp_path).probe([path]) == ("it pools to a score and has no head that makes one", True)
    assert Prober(tmp_path).probe([encoder_path]) == ("", True)


@pytest.mark.parametrize("write", [write_encoder, write_decoder])
def test_a_reranker_is_loaded_to_rank_only(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "reranker.gguf")
    loaded = open_pool(load_settings({"NEXA_MODEL_ID": str(path)})).default
    assert loaded is not None
    try:
        assert loaded.kinds == {Kind.RERANK}
        assert loaded.context is None
        assert loaded.max_embedding_tokens == loaded.model.context_tokens
        assert (loaded.pair_template is None) == (write is write_encoder)
    finally:
        loaded.close()


def test_a_model_that_answers_is_no_reranker(model: Model) -> None:
    assert model.can_generate
    assert not model.is_reranker
