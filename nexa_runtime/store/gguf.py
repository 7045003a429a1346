"""What the header of a GGUF file says, read within bounds.

Owns what a GGUF file must be to pass for a model, and what follows from it. It reads no weights, judges no
chat template, and never raises anything but ``IntegrityError``. ``pull`` and ``import`` ask it before a file
is adopted, ``show`` and the server before one is loaded.

Deliberate oddities:

1. A zero among the dimensions is refused, and so is a model of no layers: older versions of llama.cpp
   divide by the first, and all abort the process on the second.
2. A later part of a split model needs no architecture: gguf-split writes that into the first one only.
3. The file is not mapped: one that is cut off meanwhile would end the process.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from nexa_runtime.errors import IntegrityError
from nexa_runtime.store.gguf_reader import MAX_KEY_BYTES, Fault, HeaderReader, LongArray, read_value

__all__ = ["GgufHeader", "LongArray", "TensorInfo", "read_header"]

MAX_TENSORS = 100_000
MAX_METADATA = 100_000
MAX_DIMENSIONS = 4
MAX_LAYERS = 1024

_MAX_ALIGNMENT = 1024**2
_MAX_TENSOR_NAME_BYTES = 63
_MAX_INT64 = 2**63 - 1

TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}  # fmt: skip
"""By ``enum ggml_type``: the name, the elements of a block and its bytes, as libggml 0.25 has them."""

_QUANTS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
"""By ``general.file_type``, llama.cpp's ``enum llama_ftype``."""
_GUESSED = 1024
"""The bit of ``general.file_type`` that says it was guessed."""
_POOLING_RANK = 4


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``shape``: the fastest dimension first, as GGUF has it. ``offset``: from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int
    num_elements: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """``metadata``: numbers, texts, tuples for short arrays, ``LongArray``. ``size_bytes``: of the file."""

    version: int
    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    size_bytes: int

    @property
    def architecture(self) -> str:
        """Such as ``llama``; empty only in a later part of a split model."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """What the model calls itself."""
        return self.text("general.name")

    @property
    def license(self) -> str | None:
        """As the file states it."""
        return self.text("general.license")

    @property
    def chat_template(self) -> str | None:
        """Jinja source, not judged."""
        return self.text("tokenizer.chat_template")

    @property
    def num_parameters(self) -> int:
        """Of this file; a split model's parts add up."""
        return sum(tensor.num_elements for tensor in self.tensors)

    @property
    def weights_bytes(self) -> int:
        """Of this file; a split model's parts add up."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def quant(self) -> str | None:
        """Such as ``Q4_K_M``; where the file does not say, the type that most of its bytes have."""
        stated = self.number("general.file_type")
        if stated is not None and (name := _QUANTS.get(stated & ~_GUESSED)):
            return name
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.size_bytes
        return max(sizes, key=lambda one: sizes[one], default=None)

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence it was made for."""
        return self.number(f"{self.architecture}.context_length") or None

    @property
    def num_splits(self) -> int:
        """Files that make up the model."""
        return self.number("split.count") or 1

    @property
    def split_index(self) -> int:
        """Which of them this is, from 0."""
        return self.number("split.no") or 0

    @property
    def block_count(self) -> int:
        """Layers; 0 only in a later part of a split model."""
        return self.number(f"{self.architecture}.block_count") or 0

    @property
    def vocab_size(self) -> int:
        """Tokens; 0 if the file does not say."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, LongArray):
            return tokens.length
        return len(tokens) if isinstance(tokens, tuple) else 0

    @property
    def is_encoder(self) -> bool:
        """Whether the model only reads (bert and its kin), and so has no KV cells."""
        return self.metadata.get(f"{self.architecture}.attention.causal") is False

    @property
    def is_reranker(self) -> bool:
        """Whether pooling gives a score and not a vector."""
        return self.number(f"{self.architecture}.pooling_type") == _POOLING_RANK

    @property
    def is_embedding(self) -> bool:
        """Whether it is made for vectors: an encoder, or one that names a pooling; not a reranker."""
        has_pooling = bool(self.number(f"{self.architecture}.pooling_type"))
        return (self.is_encoder or has_pooling) and not self.is_reranker

    def kv_cell_bytes(self, type_k: str = "f16", type_v: str = "f16") -> int | None:
        """What one token takes in the KV cache, over all layers; None if the file does not say.

        An upper bound where some layers look back less far, or keep another kind of state.
        """
        if self.is_encoder:
            return 0
        heads = self._heads("head_count")
        heads_kv = self._heads("head_count_kv") or heads
        if not heads or not heads_kv:
            return None
        per_head = (self.number(f"{self.architecture}.embedding_length") or 0) // (max(heads) or 1)
        keys = self.number(f"{self.architecture}.attention.key_length")
        values = self.number(f"{self.architecture}.attention.value_length")
        k_bytes = (per_head if keys is None else keys) * _bytes_per_element(type_k)
        v_bytes = (per_head if values is None else values) * _bytes_per_element(type_v)
        return int(sum(heads_kv) * (k_bytes + v_bytes))

    def text(self, key: str) -> str | None:
        """The metadata under ``key``, if it is a text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """The metadata under ``key``, if it is an integer that is not negative."""
        return _count(self.metadata.get(key))

    def _heads(self, name: str) -> tuple[int, ...]:
        """Heads of each layer; empty if the file does not say."""
        value = self.metadata.get(f"{self.architecture}.attention.{name}")
        if isinstance(value, tuple):
            counts = [_count(one) for one in value[: self.block_count]]
            return tuple(count or 0 for count in counts)
        count = _count(value)
        return () if count is None else (count,) * self.block_count


class UnreadableFileError(IntegrityError):
    """The disk refused to give the file; nothing is known of what is in it."""


def read_header(path: Path) -> GgufHeader:
    """What the file at ``path`` says of itself.

    Raises ``IntegrityError``, in one sentence, for a file that is not a model, cannot be read
    (``UnreadableFileError``), or is built to do harm.
    """
    try:
        with _open(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return _parse(HeaderReader(file, size_bytes), size_bytes)
    except Fault as fault:
        reason = str(fault)
    except OSError as error:
        reason = f"cannot be read: {os.strerror(error.errno) if error.errno else 'input/output error'}"
        raise UnreadableFileError(f"The file {path.name[:200]!r} {reason}.") from None
    except ValueError:
        reason = "cannot be read: its path holds a NUL character"
    raise IntegrityError(f"The file {path.name[:200]!r} {reason}.")


def _open(path: Path) -> BinaryIO:
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Fault("is not a regular file")
    return path.open("rb")


def _parse(reader: HeaderReader, size_bytes: int) -> GgufHeader:
    version = _read_version(reader, size_bytes)
    num_tensors = reader.count(MAX_TENSORS, "tensors")
    num_metadata = reader.count(MAX_METADATA, "metadata entries")
    metadata = _read_metadata(reader, num_metadata)
    alignment = _alignment_of(metadata)
    tensors = _read_tensors(reader, num_tensors, alignment)
    data_offset = -(-reader.offset // alignment) * alignment
    if any(data_offset + tensor.offset + tensor.size_bytes > size_bytes for tensor in tensors):
        raise Fault("ends before the last of its tensors: it is cut off, or damaged")
    header = GgufHeader(version, MappingProxyType(metadata), tensors, data_offset, size_bytes)
    _check_is_model(header)
    return header


def _read_version(reader: HeaderReader, size_bytes: int) -> int:
    if size_bytes == 0:
        raise Fault("is empty")
    if size_bytes < 24 or reader.take(4) != b"GGUF":
        raise Fault("is not a GGUF file")
    version = reader.u32()
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        raise Fault("is a GGUF file for big-endian machines, or damaged")
    raise Fault(f"is a GGUF file of version {version}; versions 2 and 3 are read")


def _read_metadata(reader: HeaderReader, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(count):
        key = reader.name(MAX_KEY_BYTES)
        if key in metadata:
            raise Fault("has a metadata key twice")
        metadata[key] = read_value(reader)
    return metadata


def _alignment_of(metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment", 32)
    alignment = _count(value) or 0
    if alignment > _MAX_ALIGNMENT or alignment.bit_count() != 1:
        raise Fault("has an alignment that is no power of two, or too large")
    return alignment


def _read_tensors(reader: HeaderReader, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors = tuple(_read_tensor(reader, alignment) for _ in range(count))
    if len({tensor.name for tensor in tensors}) < count:
        raise Fault("has two tensors of one name")
    return tensors


def _read_tensor(reader: HeaderReader, alignment: int) -> TensorInfo:
    name = reader.name(_MAX_TENSOR_NAME_BYTES)
    shape = tuple(reader.u64() for _ in range(_num_dimensions(reader)))
    known = TENSOR_TYPES.get(reader.u32())
    offset = reader.u64()
    if known is None:
        raise Fault("has a tensor of an unknown type")
    type_name, block_elements, block_bytes = known
    num_elements = _num_elements(shape)
    if (shape[0] if shape else 1) % block_elements:
        raise Fault("has a tensor whose rows are not whole blocks")
    if offset % alignment:
        raise Fault("has a tensor that is not aligned")
    size_bytes = num_elements // block_elements * block_bytes
    return TensorInfo(name, shape, type_name, offset, size_bytes, num_elements)


def _num_dimensions(reader: HeaderReader) -> int:
    count = reader.u32()
    if count > MAX_DIMENSIONS:
        raise Fault(f"has a tensor of more than {MAX_DIMENSIONS} dimensions")
    return count


def _num_elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    if not 0 < product <= _MAX_INT64:
        raise Fault("has a tensor whose dimensions are 0 or absurd")
    return product


def _check_is_model(header: GgufHeader) -> None:
    if not header.split_index < header.num_splits:
        raise Fault("says that it is a part beyond the last of a split model")
    if header.split_index > 0:
        return
    kind = header.text("general.type") or "model"
    if kind != "model" or header.architecture == "clip":
        raise Fault("is an addition to a model (an adapter, a projector), and no model")
    if not header.architecture.isprintable() or not 0 < len(header.architecture) <= 64:
        raise Fault("does not name the architecture of a model")
    if not 1 <= header.block_count <= MAX_LAYERS:
        raise Fault(f"does not have 1 to {MAX_LAYERS} layers")
    if not header.tensors and header.num_splits == 1:
        raise Fault("holds no weights")


def _count(value: object) -> int | None:
    """``value``, if it is an integer that is not negative, nor a bool, which is one in Python."""
    return value if type(value) is int and value >= 0 else None


def _bytes_per_element(type_name: str) -> float:
    for name, block_elements, block_bytes in TENSOR_TYPES.values():
        if name == type_name.upper():
            return block_bytes / block_elements
    raise ValueError(f"{type_name} is not a type of ggml")
