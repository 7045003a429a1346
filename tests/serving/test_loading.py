"""From settings to a model: memory, adapters, and metadata that makes no sense."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError, ModelFileError
from nexa_runtime.llama import ContextParams, Model, SamplingParams, kv_cell_bytes
from nexa_runtime.serving.library import DEMO_PATH, Library
from nexa_runtime.serving.loading import Loader, open_pool
from nexa_runtime.serving.probe import Prober, Trial
from nexa_runtime.serving.sizing import plan_cells
from nexa_runtime.store.catalog import Catalog
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelStore
from tests.llama.lora import WIDTH, write_lora
from tests.support import LiveServer, copy_model

CELLS = 2048


class Stored:
    """The bundled model in a store as ``styled``, with engine options of a catalog."""

    def __init__(self, folder: Path, **engine: object) -> None:
        self.folder = folder
        self.settings = {
            "NEXA_MODEL_STORE": str(folder / "store"),
            "NEXA_STATE_DIR": str(folder / "state"),
            "NEXA_CATALOG_FILE": str(folder / "models.yaml"),
            "NEXA_CTX_SIZE": CELLS,
        }
        store = ModelStore(folder / "store", folder / "state")
        import_file(DEMO_PATH, store=store, name="styled")
        kinds = ["chat", "completion", "embedding"]
        entry = {"name": "styled", "repo": "org/styled", "kinds": kinds, "engine": engine}
        (folder / "models.yaml").write_text(yaml.safe_dump({"models": [entry]}))
        settings = load_settings(self.settings)
        library = Library(settings.model, settings.pool, store, Catalog.load(folder / "models.yaml"))
        source = library.find("styled")
        assert source is not None
        self.source = source
        self.load = self.loader()

    def loader(self) -> Loader:
        """With the settings as they are now."""
        settings = load_settings(self.settings)
        prober = Prober(self.folder / "state")
        return Loader(settings.model, settings.engine, ModelStore(self.folder / "store"), prober)


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
    gigabyte, cell_bytes = 2**30, model.kv_cell_bytes
    assert plan_cells(model, asked, cell_bytes=cell_bytes, available_bytes=gigabyte) == 1000
    assert (
        plan_cells(model, default, cell_bytes=cell_bytes, available_bytes=64 * gigabyte)
        == 8 * model.context_tokens
    )
    little = model.size_bytes + 2 * 1000 * cell_bytes
    assert plan_cells(model, default, cell_bytes=cell_bytes, available_bytes=little) == 1000
    with pytest.raises(ConfigError, match="NEXA_CTX_SIZE is 1000"):
        plan_cells(model, asked, cell_bytes=cell_bytes, available_bytes=1000)


def test_quantised_cells_take_less_so_that_there_are_more_of_them(tmp_path: Path, model: Model) -> None:
    assert kv_cell_bytes(model, "f16", "f16") == model.kv_cell_bytes
    assert kv_cell_bytes(model, "f32", "f32") == 2 * model.kv_cell_bytes
    assert kv_cell_bytes(model, "q8_0", "q8_0") == model.kv_cell_bytes * 34 // 64
    cells = []
    for kv_type in ("f16", "q8_0"):
        stored = Stored(tmp_path / kv_type, kv_type_k=kv_type, kv_type_v=kv_type)
        del stored.settings["NEXA_CTX_SIZE"]
        loaded = stored.loader()(stored.source, model.size_bytes + 8000 * model.kv_cell_bytes)
        cells.append(loaded.num_cells)
        loaded.close()
    assert cells[1] > 1.5 * cells[0]


def test_before_a_model_is_tried_its_header_says_what_it_takes_and_then_llama_cpp(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    estimate = stored.load.needed_bytes(stored.source)
    assert estimate == stored.source.estimate_bytes
    stored.load.try_out(stored.source)
    planned = stored.load.needed_bytes(stored.source)
    loaded = stored.load(stored.source, 2**30)
    assert loaded.memory_bytes == planned < estimate
    loaded.close()
    again = Stored(tmp_path)  # from the file of verdicts
    assert again.load.needed_bytes(again.source) == planned


def test_the_plan_follows_the_options_of_the_catalog(tmp_path: Path) -> None:
    needed = []
    for engine in ({}, {"kv_type_k": "q8_0"}, {"slots": 64}):
        stored = Stored(tmp_path, **engine)
        stored.load.try_out(stored.source)
        needed.append(stored.load.needed_bytes(stored.source))
    assert needed[1] < needed[0] < needed[2]


def test_a_plan_that_cannot_be_made_does_not_speak_against_the_model(tmp_path: Path) -> None:
    prober, trial = Prober(tmp_path), Trial(ContextParams(2**31, 1, 64, 1, 1))
    prober.check([DEMO_PATH], "digest", trial)
    assert prober.plan("digest", trial) is None


def test_adapters_of_the_catalog_hold_for_every_request(
    make_server: Callable[..., LiveServer], tmp_path: Path
) -> None:
    write_lora(tmp_path / "style.gguf")
    stored = Stored(tmp_path, lora=[{"path": "style.gguf", "scale": 2.0}])
    server = make_server(**stored.settings)
    texts, vectors = [], []
    for name in ("demo", "styled"):
        answer = server.chat("What is the capital of France?", model=name, temperature=0, max_tokens=16)
        texts.append(answer.json()["choices"][0]["message"]["content"])
        embedded = server.http.post("/v1/embeddings", json={"model": name, "input": "Hello"})
        vectors.append(embedded.json()["data"][0]["embedding"])
    assert texts[0] == "The capital of France is Paris."
    assert texts[0] != texts[1]
    assert vectors[0] != vectors[1]


def test_adapters_to_choose_from_are_counted_with_the_model(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.gguf")
    needed = []
    for engine in ({}, {"adapters": [{"name": "style", "path": "style.gguf", "scale": 0.5}]}):
        stored = Stored(tmp_path, **engine)
        stored.load.try_out(stored.source)
        needed.append(stored.load.needed_bytes(stored.source))
    assert needed[1] - needed[0] == path.stat().st_size
    loaded = stored.load(stored.source, 2**30)
    assert loaded.adapters == {"style": 0.5}
    loaded.close()


@pytest.mark.parametrize("role", [{"lora": [{}]}, {"adapters": [{"name": "style"}]}])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (None, "there is no such file"),
        ({"arch": "qwen2"}, "arch mismatch"),
        ({"width": WIDTH // 2}, "incorrect shape"),
        ({"alpha": "much"}, "with its LoRA adapters it ended the process that tried"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_process_lives(
    tmp_path: Path, fields: dict[str, object] | None, reason: str, role: dict[str, list[dict[str, str]]]
) -> None:
    path = tmp_path / "style.gguf"
    engine = {key: [one | {"path": "style.gguf"} for one in adapters] for key, adapters in role.items()}
    if fields is not None:
        write_lora(path, **fields)  # type: ignore[arg-type]
    stored = Stored(tmp_path, **engine)
    with pytest.raises(ModelFileError, match=reason):
        stored.load.try_out(stored.source)
    write_lora(path)  # another file: it is tried anew
    stored.load.try_out(stored.source)
    stored.load(stored.source, 2**30).close()
