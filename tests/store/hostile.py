"""GGUF files made by hand: good ones, and those that are built to do harm.

``make_gguf`` writes any header, right or wrong. ``HOSTILE_FILES`` are refused by ``read_header``, each with a
word of its reason. The files of ``write_bombs`` have good headers: only who loads them is harmed.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nexa_runtime
from tests.support import copy_model

DEMO_PATH = Path(nexa_runtime.__file__).parent / "data" / "nexa-demo.gguf"

_FORMATS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
U32, BOOL, TEXT, ARRAY, U64 = 4, 7, 8, 9, 10
F32_TENSOR, Q4_0_TENSOR = 0, 2

Value = tuple[int, object]
"""A type of GGUF, and a value; that of an array is its elements' type and its elements."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """``offset``: None puts it behind the one before."""

    name: str = "token_embd.weight"
    shape: tuple[int, ...] = (32, 4)
    type: int = F32_TENSOR
    offset: int | None = None
    size_bytes: int = 512


MODEL: Mapping[str, Value] = {
    "general.architecture": (TEXT, "llama"),
    "general.name": (TEXT, "Handmade"),
    "llama.block_count": (U32, 2),
    "llama.context_length": (U32, 512),
    "llama.embedding_length": (U32, 32),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (U32, 2),
}
"""The metadata of a small model without a tokenizer: enough for a header."""


def text(value: str | bytes) -> bytes:
    """A string of GGUF."""
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def encode(kind: int, value: object) -> bytes:
    """A value of GGUF without its type."""
    if kind == TEXT:
        assert isinstance(value, (str, bytes))
        return text(value)
    if kind == ARRAY:
        assert isinstance(value, tuple)
        element_kind, elements = value
        return struct.pack("<IQ", element_kind, len(elements)) + b"".join(
            encode(element_kind, element) for element in elements
        )
    return struct.pack(_FORMATS[kind], value)


def make_gguf(
    metadata: Mapping[str, Value] = MODEL,
    tensors: Sequence[Tensor] = (Tensor(),),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_metadata: int | None = None,
    raw_metadata: bytes = b"",
    data_bytes: int | None = None,
) -> bytes:
    """A file. ``raw_metadata`` follows the metadata as it is; counts and data may be told to be wrong."""
    num_metadata = len(metadata) if num_metadata is None else num_metadata
    header = magic + struct.pack(
        "<IQQ", version, len(tensors) if num_tensors is None else num_tensors, num_metadata
    )
    for key, (kind, value) in metadata.items():
        header += text(key) + struct.pack("<I", kind) + encode(kind, value)
    header += raw_metadata
    end = 0
    for tensor in tensors:
        offset = end if tensor.offset is None else tensor.offset
        end = offset + -(-tensor.size_bytes // 32) * 32
        header += text(tensor.name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        header += struct.pack("<IQ", tensor.type, offset)
    size = sum(tensor.size_bytes for tensor in tensors) if data_bytes is None else data_bytes
    return header + b"\0" * (-len(header) % 32) + b"\1" * size


def with_metadata(**changes: Value | None) -> dict[str, Value]:
    """``MODEL`` with changes: ``llama__block_count=(U32, 0)``; None removes."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return {key: value for key, value in {**MODEL, **changed}.items() if value is not None}


def _nested(depth: int) -> Value:
    value: Value = (U32, (1,))
    for _ in range(depth - 1):
        value = (ARRAY, (value,))
    return ARRAY, value


def _raw_entry(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def _with_raw(raw: bytes) -> bytes:
    return make_gguf(raw_metadata=raw, num_metadata=len(MODEL) + 1)


def _hostile_files() -> dict[str, tuple[bytes, str]]:
    demo = DEMO_PATH.read_bytes()
    absurd = Tensor(shape=(2**32, 2**32, 2**32, 2**32))
    return {
        "truncated in the counts": (demo[:20], "not a GGUF file"),
        "truncated in the metadata": (demo[:5_000], "cut off"),
        "truncated in the weights": (demo[:-1_000], "cut off"),
        "of no bytes": (b"", "empty"),
        "a web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "not a GGUF file"),
        "of another magic": (make_gguf(magic=b"GGML"), "not a GGUF file"),
        "of version 1": (make_gguf(version=1), "version 1"),
        "of version 99": (make_gguf(version=99), "version 99"),
        "for big-endian machines": (make_gguf(version=3 << 24), "big-endian"),
        "of 2^63 tensors": (make_gguf(num_tensors=2**63), "tensors"),
        "of 2^64-1 metadata entries": (make_gguf(num_metadata=2**64 - 1), "metadata entries"),
        "with a text of 2^62 bytes": (_with_raw(_raw_entry("x", TEXT, struct.pack("<Q", 2**62))), "text of"),
        "with a key of 2^40 bytes": (_with_raw(struct.pack("<Q", 2**40)), "text of"),
        "with an array of 2^61 numbers": (
            _with_raw(_raw_entry("x", ARRAY, struct.pack("<IQ", U64, 2**61))),
            "cut off",
        ),
        "with an array of 2^61 texts": (
            _with_raw(_raw_entry("x", ARRAY, struct.pack("<IQ", TEXT, 2**61))),
            "texts in its arrays",
        ),
        "with an array of 2^61 arrays": (
            _with_raw(_raw_entry("x", ARRAY, struct.pack("<IQ", ARRAY, 2**61))),
            "arrays within arrays",
        ),
        "with deeply nested arrays": (make_gguf({**MODEL, "x": _nested(40)}), "nested deeper"),
        "with an unknown type of metadata": (_with_raw(_raw_entry("x", 77, b"")), "unknown type"),
        "with a key twice": (_with_raw(_raw_entry("general.name", TEXT, text("b"))), "key twice"),
        "with a key that is not text": (_with_raw(text(b"\xff") + struct.pack("<II", U32, 0)), "UTF-8"),
        "with a tensor outside the file": (make_gguf(tensors=[Tensor(offset=2**40)]), "cut off"),
        "with a tensor whose end overflows": (make_gguf(tensors=[Tensor(offset=2**64 - 32)]), "cut off"),
        "with a tensor that is not aligned": (make_gguf(tensors=[Tensor(offset=7)]), "not aligned"),
        "with absurd dimensions": (make_gguf(tensors=[absurd]), "absurd"),
        "with a dimension of 0": (make_gguf(tensors=[Tensor(shape=(32, 0))]), "absurd"),
        "with five dimensions": (make_gguf(tensors=[Tensor(shape=(1,) * 5)]), "dimensions"),
        "with 2^32-1 dimensions": (
            make_gguf(tensors=[], num_tensors=1, raw_metadata=text("t") + b"\xff" * 4),
            "dimensions",
        ),
        "with rows of half a block": (make_gguf(tensors=[Tensor(shape=(33, 4), type=Q4_0_TENSOR)]), "blocks"),
        "with an unknown type of tensor": (make_gguf(tensors=[Tensor(type=5)]), "unknown type"),
        "with two tensors of one name": (make_gguf(tensors=[Tensor(), Tensor()]), "one name"),
        "with a tensor's name of 64 bytes": (make_gguf(tensors=[Tensor(name="t" * 64)]), "too long"),
        "without tensors": (make_gguf(tensors=[]), "no weights"),
        "with an alignment of 0": (make_gguf({**MODEL, "general.alignment": (U32, 0)}), "power of two"),
        "with an alignment of 48": (make_gguf({**MODEL, "general.alignment": (U32, 48)}), "power of two"),
        "with an alignment of 2^31": (
            make_gguf({**MODEL, "general.alignment": (U32, 2**31)}),
            "power of two",
        ),
        "without an architecture": (make_gguf(with_metadata(general__architecture=None)), "architecture"),
        "with an architecture that is a number": (
            make_gguf(with_metadata(general__architecture=(U32, 1))),
            "architecture",
        ),
        "with an empty architecture": (
            make_gguf(with_metadata(general__architecture=(TEXT, ""))),
            "architecture",
        ),
        "of no layers": (make_gguf(with_metadata(llama__block_count=(U32, 0))), "layers"),
        "of 2^32-1 layers": (make_gguf(with_metadata(llama__block_count=(U32, 2**32 - 1))), "layers"),
        "of true layers": (make_gguf(with_metadata(llama__block_count=(BOOL, True))), "layers"),
        "a projector": (make_gguf(with_metadata(general__architecture=(TEXT, "clip"))), "projector"),
        "an adapter": (make_gguf({**MODEL, "general.type": (TEXT, "adapter")}), "adapter"),
        "a part beyond the last": (
            make_gguf({**MODEL, "split.no": (2, 3), "split.count": (2, 3)}),
            "part beyond",
        ),
    }


HOSTILE_FILES: Mapping[str, tuple[bytes, str]] = _hostile_files()
"""By what is wrong: the bytes, and a part of the sentence that refuses them."""


def write_hostile_files(folder: Path) -> dict[str, Path]:
    """All of them as files, by what is wrong."""
    paths = {}
    for number, (name, (content, _)) in enumerate(HOSTILE_FILES.items()):
        paths[name] = folder / f"hostile-{number}.gguf"
        paths[name].write_bytes(content)
    return paths


def write_bombs(folder: Path) -> dict[str, Path]:
    """The demo model with something inside that goes off when it is loaded or asked, by what it is."""
    templates = {
        "with a template bomb": "{{ 'x' * 10**15 }}",
        "with nested template loops": "{% for i in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4,
        # Few steps, each of them long; and a text that would be doubled until memory ends.
        "with a slow template": "{% for i in range(9999) %}{{ ('ab ' * 3000000) | upper }}{% endfor %}",
        "with a growing template": (
            "{% set all = namespace(text='x') %}"
            "{% for i in range(60) %}{% set all.text = all.text ~ all.text %}{% endfor %}"
        ),
    }
    bombs = {
        name: copy_model(folder / f"template-{number}.gguf", chat_template=template)
        for number, (name, template) in enumerate(templates.items())
    }
    return bombs | {
        "that ends the process": copy_model(folder / "abort.gguf", layer_norm_rms_epsilon=-1.0),
    }
