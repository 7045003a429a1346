"""Small rerankers with random weights: an encoder like bert, and a decoder with a template of its own."""

from pathlib import Path

import gguf

from nexa_runtime.serving.library import DEMO_PATH
from scripts.bench.make_model import Shape, write_model

ENCODER = Shape("bert", num_layers=2, width=64, inner_width=128, num_heads=4, num_kv_heads=4, context=128,
                num_scores=1)  # fmt: skip
DECODER = Shape("qwen3", num_layers=2, width=64, inner_width=128, num_heads=4, num_kv_heads=2, context=256,
                is_tied=True, num_scores=2)  # fmt: skip

BOS, SEP, EOS = 0, 1, 2
"""The demo's control tokens, in parts that its own vocabulary does not give them."""

_FLAGS: dict[str, bool | int | str] = {
    "tokenizer.ggml.bos_token_id": BOS,
    "tokenizer.ggml.seperator_token_id": SEP,
    "tokenizer.ggml.eos_token_id": EOS,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_sep_token": True,
}

TEMPLATE = "<|im_start|>user\nIs {document} about {query}?<|im_end|>\n<|im_start|>assistant\n"


def write_encoder(path: Path, *, adds_eos: bool = True) -> Path:
    """Query and document between marks: BOS query EOS SEP document EOS, or with SEP alone."""
    flags = {**_FLAGS, "tokenizer.ggml.add_eos_token": adds_eos}
    write_model(ENCODER, DEMO_PATH, path, is_f32=True, tokenizer=flags)
    return path


def write_decoder(path: Path) -> Path:
    """With two labels, whose scores llama.cpp makes probabilities of."""
    template: dict[str, bool | int | str] = {"tokenizer.chat_template.rerank": TEMPLATE}
    write_model(DECODER, DEMO_PATH, path, is_f32=True, tokenizer=template)
    return path


def without_head(source: Path, out: Path) -> Path:
    """The same file without what makes the score."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, ENCODER.arch)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        if not tensor.name.startswith("cls"):
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
