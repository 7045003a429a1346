"""Loading: the bundled model, and files that are no models."""

from pathlib import Path

import gguf
import pytest

from nexa_runtime.errors import ModelFileError
from nexa_runtime.llama import Model
from nexa_runtime.serving.library import DEMO_PATH


def test_the_bundled_model_is_small_and_says_what_it_is(model: Model) -> None:
    assert DEMO_PATH.stat().st_size <= 8 * 1024 * 1024
    assert 2_000_000 <= model.num_parameters <= 5_000_000
    assert model.context_tokens >= 2048
    assert 2000 <= model.vocab.size <= 4096 + 64
    assert model.metadata["general.architecture"] == "llama"
    assert model.chat_template is not None
    assert model.kv_cell_bytes > 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"GGU", "not a GGUF file"),
        (b"<html>Not found</html>", "not a GGUF file"),
        (b"GGUF" + (99).to_bytes(4, "little") + bytes(64), "version 99"),
        (b"GGUF" + (3).to_bytes(4, "little") + bytes(16), "cannot load"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, "cannot load"),
        (DEMO_PATH.read_bytes()[:100_000], "cannot load"),
    ],
    ids=["empty", "short", "html", "future", "no tensors", "hostile counts", "truncated"],
)
def test_a_file_that_is_no_model_is_refused_with_a_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        Model.load(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="folder"):
        Model.load(tmp_path)


def test_a_vocabulary_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([bytes([value]) for value in range(65, 91)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="cannot load the model"):
        Model.load(path)
