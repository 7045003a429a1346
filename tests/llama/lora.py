"""LoRA adapters for the bundled model, right ones and wrong ones, written with the gguf package."""

from pathlib import Path

import gguf
import numpy as np

WIDTH = 192
"""Of the bundled model: its query matrix is square."""
RANK = 2


def write_lora(
    path: Path, *, arch: str = "llama", kind: str = "adapter", width: int = WIDTH, alpha: object = 8.0
) -> Path:
    """An adapter on the first layer's queries; ``alpha`` of another type than float aborts llama.cpp."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    if isinstance(alpha, float):
        writer.add_float32("adapter.lora.alpha", alpha)
    else:
        writer.add_string("adapter.lora.alpha", str(alpha))
    for name, shape in (("lora_a", (RANK, width)), ("lora_b", (width, RANK))):
        values = random.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(f"blk.0.attn_q.weight.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
