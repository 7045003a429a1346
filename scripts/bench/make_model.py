"""Random-weight GGUF models of well-known shapes, for measuring speed where no weights can be had.

Owns the shapes and the tensor names of each architecture. The tokenizer is taken from any GGUF file that is
trusted; llama.cpp quantises. The answers of such a model are noise: only its speed and its arithmetic mean
something.

    scripts/bench/make_model qwen2.5-0.5b out.gguf --vocab vocab.gguf [--type Q4_K_M] [--seed 1]
"""

import argparse
import ctypes
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import llama_cpp.llama_cpp as C
import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15}
"""llama.cpp's ``LLAMA_FTYPE_*`` of each type."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. ``num_kv_heads`` counts for decoders, ``context`` is its longest sequence.

    ``num_scores``: of each input to a reranker (of the architectures bert and qwen3); 0: it is none.
    """

    arch: str
    num_layers: int
    width: int
    inner_width: int
    num_heads: int
    num_kv_heads: int
    context: int
    rope_base: float = 10_000.0
    is_tied: bool = False
    num_scores: int = 0


SHAPES = {
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 32768, 1e6, is_tied=True),
    "qwen2.5-1.5b": Shape("qwen2", 28, 1536, 8960, 12, 2, 32768, 1e6, is_tied=True),
    "llama-3-8b": Shape("llama", 32, 4096, 14336, 32, 8, 8192, 5e5),
    "tiny": Shape("llama", 2, 128, 384, 4, 2, 4096, is_tied=True),
    "bert-mini": Shape("bert", 6, 384, 1536, 12, 12, 512),
    "bert-mini-reranker": Shape("bert", 6, 384, 1536, 12, 12, 512, num_scores=1),
}

ADDED_AS_F32 = frozenset({"token_types.weight", "position_embd.weight"})
"""Matrices that llama.cpp adds and does not multiply: it aborts the process when they are not F32."""

_SPREAD, _HEAD_SPREAD = 0.05, 0.5
"""Of random weights; a reranker's head has more, so that its scores differ."""

Tensor = tuple[str, tuple[int, ...], float]
"""Name, shape (rows first), and the centre of its values: 1 for norms, 0 for the rest."""


def tensors(shape: Shape, vocab_size: int) -> Iterator[Tensor]:
    """Every tensor of a model, as llama.cpp names and orders its axes."""
    d, inner = shape.width, shape.inner_width
    kv = d // shape.num_heads * shape.num_kv_heads
    yield "token_embd.weight", (vocab_size, d), 0
    if shape.arch == "bert":
        yield from _bert_tensors(shape)
        return
    yield "output_norm.weight", (d,), 1
    if not shape.is_tied:
        yield "output.weight", (vocab_size, d), 0
    for layer in range(shape.num_layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (d,), 1
        yield f"{block}.ffn_norm.weight", (d,), 1
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            yield f"{block}.attn_{name}.weight", (rows, d), 0
            if shape.arch == "qwen2":
                yield f"{block}.attn_{name}.bias", (rows,), 0
            if shape.arch == "qwen3" and name != "v":
                yield f"{block}.attn_{name}_norm.weight", (d // shape.num_heads,), 1
        yield f"{block}.attn_output.weight", (d, d), 0
        yield f"{block}.ffn_gate.weight", (inner, d), 0
        yield f"{block}.ffn_up.weight", (inner, d), 0
        yield f"{block}.ffn_down.weight", (d, inner), 0
    if shape.num_scores:
        yield "cls.output.weight", (shape.num_scores, d), 0


def _bert_tensors(shape: Shape) -> Iterator[Tensor]:
    d, inner = shape.width, shape.inner_width
    yield "token_types.weight", (2, d), 0
    yield "position_embd.weight", (shape.context, d), 0
    yield "token_embd_norm.weight", (d,), 1
    yield "token_embd_norm.bias", (d,), 0
    for layer in range(shape.num_layers):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", d, d),
            ("attn_k", d, d),
            ("attn_v", d, d),
            ("attn_output", d, d),
            ("ffn_up", inner, d),
            ("ffn_down", d, inner),
        ):
            yield f"{block}.{name}.weight", (rows, columns), 0
            yield f"{block}.{name}.bias", (rows,), 0
        for name in ("attn_output_norm", "layer_output_norm"):
            yield f"{block}.{name}.weight", (d,), 1
            yield f"{block}.{name}.bias", (d,), 0
    if shape.num_scores:
        for name, rows in (("cls", d), ("cls.output", shape.num_scores)):
            yield f"{name}.weight", (rows, d), 0
            yield f"{name}.bias", (rows,), 0


def write_model(
    shape: Shape,
    vocab: Path,
    out: Path,
    *,
    is_f32: bool = False,
    seed: int = 1,
    tokenizer: Mapping[str, bool | int | str] = MappingProxyType({}),
) -> None:
    """Write a model in F16 (or F32) with the tokenizer of ``vocab``, but for the keys of ``tokenizer``."""
    reader = gguf.GGUFReader(vocab)
    writer = gguf.GGUFWriter(out, shape.arch, use_temp_file=True)
    writer.add_name(out.stem)
    _add_sizes(writer, shape)
    for key, field in reader.fields.items():
        if key.startswith("tokenizer.") and key not in tokenizer:
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for key, value in tokenizer.items():
        is_id = type(value) is int  # llama.cpp wants ids without a sign
        kind = gguf.GGUFValueType.UINT32 if is_id else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    vocab_size = len(reader.fields["tokenizer.ggml.tokens"].data)
    random = np.random.default_rng(seed)
    for name, size, centre in tensors(shape, vocab_size):
        spread = np.float32(_HEAD_SPREAD if name.startswith("cls") else _SPREAD)
        values = random.standard_normal(size, dtype=np.float32) * spread + np.float32(centre)
        keeps_f32 = is_f32 or len(size) == 1 or name in ADDED_AS_F32
        writer.add_tensor(name, values if keeps_f32 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.inner_width)
    writer.add_head_count(shape.num_heads)
    if shape.num_scores:
        writer.add_pooling_type(gguf.PoolingType.RANK)
        if shape.num_scores > 1:
            writer.add_classifier_output_labels([f"label {index}" for index in range(shape.num_scores)])
    elif shape.arch == "bert":
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    if shape.arch == "bert":
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)
        writer.add_token_type_count(2)
        return
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.width // shape.num_heads)


def quantise(source: Path, out: Path, kind: str) -> None:
    """Let llama.cpp write ``source`` in another type."""
    params = C.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    if C.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not quantise {source} to {kind}")


def main() -> None:
    """Parse the arguments, write, quantise."""
    parser = argparse.ArgumentParser(description="Write a random-weight GGUF model of a named shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=Path, required=True, help="any GGUF file; its tokenizer is taken")
    parser.add_argument("--type", choices=TYPES, default="Q4_K_M")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.vocab.is_file():
        parser.error(f"--vocab: there is no file {arguments.vocab}")
    shape = SHAPES[arguments.shape]
    if arguments.type in ("F32", "F16"):
        is_f32 = arguments.type == "F32"
        write_model(shape, arguments.vocab, arguments.out, is_f32=is_f32, seed=arguments.seed)
    else:
        raw = arguments.out.with_suffix(".f16.tmp")
        try:
            write_model(shape, arguments.vocab, raw, seed=arguments.seed)
            quantise(raw, arguments.out, arguments.type)
        finally:
            raw.unlink(missing_ok=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
