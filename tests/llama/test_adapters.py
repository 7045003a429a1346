"""LoRA adapters hold for every context, or are switched on by name; what is none is refused."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nexa_runtime.errors import LlamaGuardError, ModelFileError
from nexa_runtime.llama import Context, ContextParams, DecodeStatus, EmbeddingContext, Model
from nexa_runtime.lora import AdapterSet
from nexa_runtime.serving.library import DEMO_PATH
from tests.llama.lora import WIDTH, write_lora

TOKENS = np.arange(5, 21, dtype=np.int32)
Row = npt.NDArray[np.float32]


def outputs(*adapters: tuple[Path, float]) -> tuple[Row, Row]:
    """Logits of the last token, and the embedding, of the bundled model with these adapters."""
    model = Model.load(DEMO_PATH)
    for path, scale in adapters:
        model.add_adapter(path, scale)
    context = Context(model, ContextParams(256, 1, 32, 1, 2))
    batch = context.make_batch()
    batch.add(0, TOKENS, 0, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.OK
    logits = context.logits(1)[0].copy()
    context.close()
    embedding = EmbeddingContext(model, max_tokens=32, num_threads=2)
    vector = embedding.embed([TOKENS])[0]
    embedding.close()
    model.close()
    return logits, vector


def test_an_adapter_changes_what_is_generated_and_embedded(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.gguf")
    plain, adapted, without = outputs(), outputs((path, 1.0)), outputs((path, 0.0))
    for index in (0, 1):
        assert not np.allclose(plain[index], adapted[index], atol=1e-3)
        assert np.array_equal(plain[index], without[index])


def test_several_adapters_add_up(tmp_path: Path) -> None:
    one, two = (write_lora(tmp_path / f"{name}.gguf") for name in ("one", "two"))
    logits, _ = outputs((one, 0.5), (two, 0.5))
    assert np.allclose(logits, outputs((one, 1.0))[0], atol=1e-3)


def logits_of(context: Context, adapters: AdapterSet) -> Row:
    context.use_adapters(adapters)
    context.remove(0)
    batch = context.make_batch()
    batch.add(0, TOKENS, 0, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.OK
    row: Row = context.logits(1)[0].copy()
    return row


@pytest.mark.parametrize("static_scale", [0.0, 0.3])
def test_named_adapters_are_switched_on_and_off_without_a_trace(tmp_path: Path, static_scale: float) -> None:
    model = Model.load(DEMO_PATH)
    static = write_lora(tmp_path / "static.gguf")
    model.add_adapter(static, static_scale)
    for name in ("a", "b"):
        model.name_adapter(name, write_lora(tmp_path / f"{name}.gguf"))
    context = Context(model, ContextParams(256, 1, 32, 1, 2))
    plain = logits_of(context, ())
    one = logits_of(context, (("a", 1.0),))
    assert not np.allclose(plain, one, atol=1e-3)
    assert np.array_equal(logits_of(context, ()), plain)
    assert np.array_equal(logits_of(context, (("a", 0.0),)), plain)
    assert np.array_equal(logits_of(context, (("a", 1.0),)), one)
    assert np.allclose(logits_of(context, (("a", 0.5), ("b", 0.5))), one, atol=1e-3)
    with pytest.raises(LlamaGuardError, match="adapter c"):
        context.use_adapters((("c", 1.0),))
    assert np.allclose(logits_of(context, (("b", 1.0),)), one, atol=1e-3)
    assert np.array_equal(logits_of(context, ()), plain)
    embedding = EmbeddingContext(model, max_tokens=32, num_threads=2)
    assert np.array_equal(embedding.embed([TOKENS])[0], outputs((static, static_scale))[1])
    embedding.close()
    context.close()
    model.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"arch": "qwen2"}, "arch mismatch"),
        ({"width": WIDTH // 2}, "incorrect shape"),
        ({"kind": "model"}, "general.type"),
    ],
)
def test_an_adapter_for_another_model_is_refused(
    model: Model, tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    path = write_lora(tmp_path / "style.gguf", **fields)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match=rf"its LoRA adapter style\.gguf cannot be used \(.*{reason}"):
        model.add_adapter(path, 1.0)


def test_what_is_no_adapter_is_refused(model: Model, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write_lora(tmp_path / "whole.gguf").read_bytes()[:-1000])
    text = tmp_path / "text.gguf"
    text.write_text("no adapter")
    for path, reason in (
        (tmp_path / "none.gguf", "there is no such file"),
        (tmp_path, "it is a folder"),
        (text, "it is not a GGUF file"),
        (cut, "corrupted or incomplete"),
        (DEMO_PATH, "general.type"),
    ):
        with pytest.raises(ModelFileError, match=reason):
            model.add_adapter(path, 1.0)
