"""Writing the trained model as GGUF with its tokenizer, chat template and metadata.

Owns the mapping from PyTorch names to llama.cpp names and the choice between F16 and Q8_0. It never
trains; the executable `scripts/demo_model/train` runs it last, or by hand: `python -m demo_model.export
--run DIR --to FILE`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from demo_model.chat import END_OF_TEXT, IM_END, SPECIAL_TOKENS, template_text
from demo_model.model import DemoModel
from demo_model.tokenizer import load_tokenizer, vocabulary
from demo_model.train import load

MAX_BYTES = 8_000_000
DESCRIPTION = (
    "A toy chat model in English, Spanish and Portuguese, trained from nothing by the Nexa Runtime project, "
    "so that the runtime works without a network. It knows greetings, capitals, small sums, the calendar and "
    "two tools."
)


def tensors(model: DemoModel) -> Iterator[tuple[str, Tensor]]:
    """Tensors under their llama.cpp names; there is no output.weight, the embedding is shared."""
    dim, ffn = model.config.dim, model.config.ffn_dim
    state = model.state_dict()
    yield "token_embd.weight", state["embed.weight"]
    yield "output_norm.weight", state["norm.weight"]
    for index in range(model.config.n_layers):
        source, target = f"blocks.{index}", f"blk.{index}"
        yield f"{target}.attn_norm.weight", state[f"{source}.attn_norm.weight"]
        for name, part in zip("qkv", state[f"{source}.qkv.weight"].split(dim), strict=True):
            yield f"{target}.attn_{name}.weight", part
        yield f"{target}.attn_output.weight", state[f"{source}.out.weight"]
        yield f"{target}.ffn_norm.weight", state[f"{source}.ffn_norm.weight"]
        gate, up = state[f"{source}.gate_up.weight"].split(ffn)
        yield f"{target}.ffn_gate.weight", gate
        yield f"{target}.ffn_up.weight", up
        yield f"{target}.ffn_down.weight", state[f"{source}.down.weight"]


def write_metadata(writer: gguf.GGUFWriter, model: DemoModel, *, half: bool) -> None:
    config = model.config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Nexa Demo")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_size_label(f"{model.parameter_count() / 1e6:.1f}M")
    writer.add_languages(["en", "es", "pt"])
    writer.add_float32("general.sampling.temp", 0.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def write_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    tokens, merges = vocabulary(load_tokenizer(path))
    special = set(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(IM_END))
    writer.add_eot_token_id(tokens.index(IM_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template_text())


def write(run: Path, target: Path, *, half: bool) -> None:
    """Write next to the target and rename, so that a reader never sees half a file."""
    model = load(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    write_metadata(writer, model, half=half)
    write_tokenizer(writer, run / "tokenizer.json")
    for name, tensor in tensors(model):
        values = tensor.float().contiguous().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        elif half:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="folder that training filled")
    parser.add_argument("--to", type=Path, required=True, help="the GGUF file to write")
    arguments = parser.parse_args()
    write(arguments.run, arguments.to, half=True)
    if arguments.to.stat().st_size > MAX_BYTES:
        write(arguments.run, arguments.to, half=False)
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
