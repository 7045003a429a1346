"""Reading headers: what good files say, and that no file can do harm."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_runtime.errors import IntegrityError
from nexa_runtime.store.gguf import TENSOR_TYPES, LongArray, read_header
from nexa_runtime.store.memory import memory_estimate
from tests.store.hostile import (
    ARRAY,
    BOOL,
    DEMO_PATH,
    HOSTILE_FILES,
    MODEL,
    Q4_0_TENSOR,
    TEXT,
    U32,
    Tensor,
    make_gguf,
    text,
    with_metadata,
)

DEMO_HEADER_BYTES = 64_128
DEMO = DEMO_PATH.read_bytes()

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        read_header(path)
    return str(caught.value)


def test_the_bundled_model_says_what_it_is() -> None:
    header = read_header(DEMO_PATH)
    assert (header.version, header.architecture, header.name) == (3, "llama", "Nexa Demo")
    assert (header.quant, header.license, header.context_tokens) == ("F16", "MIT", 4096)
    assert header.num_parameters == 3_049_920
    assert header.data_offset == DEMO_HEADER_BYTES
    assert header.size_bytes == DEMO_PATH.stat().st_size == header.data_offset + header.weights_bytes
    assert (header.num_splits, header.split_index) == (1, 0)
    assert header.kv_cell_bytes() == 6 * 6 * (32 + 32) * 2
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template
    assert header.vocab_size == 2048
    assert not header.is_encoder
    assert not header.is_embedding


def test_it_agrees_with_the_reference_reader() -> None:
    header = read_header(DEMO_PATH)
    reference = gguf.GGUFReader(DEMO_PATH)
    assert [tensor.name for tensor in header.tensors] == [one.name for one in reference.tensors]
    for tensor, one in zip(header.tensors, reference.tensors, strict=True):
        assert tensor.shape == tuple(one.shape)
        assert tensor.size_bytes == one.n_bytes
        assert header.data_offset + tensor.offset == one.data_offset
    fields = {name: field for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == fields.keys()
    for name, field in fields.items():
        value, known = header.metadata[name], field.contents()
        if isinstance(value, LongArray):
            assert value.length == len(known)
        else:
            assert value == (tuple(known) if isinstance(known, list) else known)


def test_the_table_of_types_is_that_of_ggml() -> None:
    for number, (elements, size_bytes) in gguf.GGML_QUANT_SIZES.items():
        if number is gguf.GGMLQuantizationType.Q8_1:
            continue  # the package still has the size of an older version; libggml says 36
        assert TENSOR_TYPES[number.value] == (number.name, elements, size_bytes)


def test_long_arrays_keep_only_their_length(write: Write) -> None:
    numbers = (ARRAY, (U32, tuple(range(5_000))))
    texts = (ARRAY, (TEXT, tuple(str(number) for number in range(5_000))))
    header = read_header(write(make_gguf({**MODEL, "numbers": numbers, "texts": texts})))
    assert header.metadata["numbers"] == header.metadata["texts"] == LongArray(5_000)


def test_short_arrays_and_nested_ones(write: Write) -> None:
    nested = (ARRAY, (ARRAY, ((U32, (1, 2)), (TEXT, ("a",)))))
    kept = {"numbers": (ARRAY, (U32, (1, 2))), "texts": (ARRAY, (TEXT, ("a", "b"))), "nested": nested}
    header = read_header(write(make_gguf({**MODEL, **kept})))
    assert header.metadata["numbers"] == (1, 2)
    assert header.metadata["texts"] == ("a", "b")
    assert header.metadata["nested"] == LongArray(2)


def test_texts_longer_than_the_buffer_are_skipped(write: Write) -> None:
    texts = (ARRAY, (TEXT, ("x" * 3_000_000, *["y"] * 100, "z" * 1_048_570)))
    header = read_header(write(make_gguf({**MODEL, "texts": texts, "after": (U32, 7)})))
    assert header.metadata["after"] == 7


def test_kv_cells_of_layers_that_differ(write: Write) -> None:
    heads = {"llama__attention__head_count_kv": (ARRAY, (U32, (2, 0)))}
    wide = {"llama__attention__key_length": (U32, 64), "llama__attention__value_length": (U32, 16)}
    assert read_header(write(make_gguf())).kv_cell_bytes() == 2 * 2 * (8 + 8) * 2
    assert read_header(write(make_gguf(with_metadata(**heads)))).kv_cell_bytes() == 2 * (8 + 8) * 2
    header = read_header(write(make_gguf(with_metadata(**wide))))
    assert header.kv_cell_bytes() == 2 * 2 * (64 + 16) * 2
    assert header.kv_cell_bytes("q8_0", "q8_0") == 2 * 2 * (64 + 16) * 34 // 32
    none = with_metadata(llama__attention__head_count=None, llama__attention__head_count_kv=None)
    assert read_header(write(make_gguf(none))).kv_cell_bytes() is None


def test_encoders_embed_and_have_no_cells(write: Write) -> None:
    causal = {"llama__attention__causal": (BOOL, False)}
    header = read_header(write(make_gguf(with_metadata(**causal))))
    assert header.is_encoder
    assert header.is_embedding
    assert header.kv_cell_bytes() == 0
    reranker = read_header(write(make_gguf(with_metadata(**causal, llama__pooling_type=(U32, 4)))))
    assert reranker.is_reranker
    assert not reranker.is_embedding


def test_the_quant_is_the_stated_one_or_else_that_of_most_bytes(write: Write) -> None:
    tensors = [Tensor(), Tensor("b", (32, 400), Q4_0_TENSOR, size_bytes=7_200)]
    assert read_header(write(make_gguf(tensors=tensors))).quant == "Q4_0"
    for stated, quant in [(15, "Q4_K_M"), (15 + 1024, "Q4_K_M"), (999, "Q4_0")]:
        metadata = {**MODEL, "general.file_type": (U32, stated)}
        assert read_header(write(make_gguf(metadata, tensors))).quant == quant


def test_a_later_part_of_a_split_model_needs_no_architecture(write: Write) -> None:
    header = read_header(write(make_gguf({"split.no": (2, 1), "split.count": (2, 2)})))
    assert (header.split_index, header.num_splits, header.architecture) == (1, 2, "")


def test_the_first_part_of_a_split_model_may_hold_no_weights(write: Write) -> None:
    metadata = {**MODEL, "split.no": (2, 0), "split.count": (2, 2)}
    assert read_header(write(make_gguf(metadata, []))).num_splits == 2


def test_an_estimate_grows_with_context_and_slots_and_stays_bounded(write: Write) -> None:
    header = read_header(DEMO_PATH)
    small = memory_estimate(header, 1024, 1)
    assert small > header.weights_bytes + 1024 * 4608
    assert memory_estimate(header, 4096, 1) == memory_estimate(header, 1024, 4) > small
    assert memory_estimate(header, 4096, 1, type_k="q8_0", type_v="q8_0") < memory_estimate(header, 4096, 1)
    huge = read_header(write(make_gguf(with_metadata(llama__feed_forward_length=(U32, 2**32 - 1)))))
    assert memory_estimate(huge, 512, 1) < 5 * 1024**3


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_hostile_file_is_refused_with_its_reason(name: str, write: Write) -> None:
    content, reason = HOSTILE_FILES[name]
    sentence = refusal(write(content))
    assert reason in sentence
    assert sentence.startswith("The file 'model.gguf' ")
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.gguf")
    assert "regular file" in refusal(tmp_path)
    assert "regular file" in refusal(Path("/dev/zero"))
    assert "NUL" in refusal(Path("a\0b"))


def hole(path: Path, content: bytes, size: int = 2**30) -> Path:
    """A file of a gigabyte that takes no space: after the content all is zero."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)
    return path


def entry(element_kind: int, count: int) -> bytes:
    return text("x") + struct.pack("<IIQ", ARRAY, element_kind, count)


BOMBS = {
    "texts": make_gguf({}, [], raw_metadata=entry(TEXT, 4_000_000), num_metadata=1),
    "arrays": make_gguf({}, [], raw_metadata=entry(ARRAY, 100_000), num_metadata=1),
    "numbers": make_gguf({}, [], raw_metadata=entry(U32, 200_000_000), num_metadata=1),
    "tensors": make_gguf(tensors=[], num_tensors=100_000),
    "metadata": make_gguf({}, [], num_metadata=100_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_large_hostile_header_costs_little_time(name: str, tmp_path: Path) -> None:
    # Each takes a second at most; without the bounds a test run would not end.
    assert refusal(hole(tmp_path / "bomb.gguf", BOMBS[name]))


def test_kept_texts_are_bounded_together(write: Write) -> None:
    texts = {f"text.{number}": (TEXT, "x" * 16_000_000) for number in range(5)}
    assert "of metadata" in refusal(write(make_gguf({**MODEL, **texts})))


def read_or_refuse(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    try:
        header = read_header(path)
    except IntegrityError:
        return
    assert memory_estimate(header, 4096, 2) >= 0
    assert header.quant is None or header.quant
    assert header.is_embedding in (True, False)


EDITS = st.lists(
    st.tuples(st.integers(0, DEMO_HEADER_BYTES - 1), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_no_edit_of_a_header_does_more_than_refuse(edits: list[tuple[int, bytes]], tmp_path: Path) -> None:
    content = bytearray(DEMO)
    for offset, replacement in edits:
        content[offset : offset + len(replacement)] = replacement
    read_or_refuse(bytes(content), tmp_path / "edited.gguf")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, DEMO_HEADER_BYTES + 100))
def test_no_cut_of_a_file_passes(size: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(DEMO[:size])
    assert refusal(path)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), is_begun=st.booleans())
def test_no_random_bytes_do_more_than_refuse(content: bytes, is_begun: bool, tmp_path: Path) -> None:
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) if is_begun else b""
    read_or_refuse(start + content, tmp_path / "random.gguf")
