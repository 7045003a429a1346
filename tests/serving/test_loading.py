"""From settings to a model: memory, and metadata that makes no sense."""

from pathlib import Path

import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.llama import Model, SamplingParams
from nexa_runtime.serving.loading import open_pool, plan_cells
from tests.support import copy_model


def with_metadata(path: Path, **changes: float) -> Path:
    """The bundled model with other ``general.sampling.*``."""
    return copy_model(path, without="general.sampling.", **changes)


def sampling_of(path: Path) -> SamplingParams:
    settings = load_settings({"NEXA_MODEL_ID": str(path), "NEXA_CTX_SIZE": 4096})
    loaded = open_pool(settings).default
    assert loaded is not None
    loaded.close()
    return loaded.sampling


def test_the_models_own_sampling_is_the_default(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "m.gguf", temp=0.3, top_k=7, top_p=0.5, min_p=0.1, penalty_repeat=1.1)
    assert sampling_of(path) == SamplingParams(0.3, 7, 0.5, 0.1, 1.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5.0, 1e30])
def test_sampling_metadata_without_sense_is_ignored(tmp_path: Path, value: float) -> None:
    names = ("temp", "top_k", "top_p", "min_p", "penalty_repeat", "penalty_last_n")
    assert sampling_of(with_metadata(tmp_path / "m.gguf", **dict.fromkeys(names, value))) == SamplingParams()


def test_a_negative_window_is_the_whole_context(tmp_path: Path) -> None:
    assert sampling_of(with_metadata(tmp_path / "m.gguf", penalty_last_n=-1)).penalty_last_n == 4096


def test_cells_are_as_many_as_asked_or_as_memory_allows(model: Model) -> None:
    asked = load_settings({"NEXA_CTX_SIZE": 1000}).engine
    default = load_settings().engine
    gigabyte = 2**30
    assert plan_cells(model, asked, available_bytes=gigabyte) == 1000
    assert plan_cells(model, default, available_bytes=64 * gigabyte) == 8 * model.context_tokens
    little = model.size_bytes + 2 * 1000 * model.kv_cell_bytes
    assert plan_cells(model, default, available_bytes=little) == 1000
    with pytest.raises(ConfigError, match="NEXA_CTX_SIZE is 1000"):
        plan_cells(model, asked, available_bytes=1000)
