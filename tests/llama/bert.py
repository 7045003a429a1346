"""bert in numpy, float64: what llama.cpp's vectors and scores are held against."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from scripts.bench.make_model import Shape

EPSILON = 1e-12


def last_states(path: Path, shape: Shape, tokens: Any) -> Any:
    """The states after the last layer, a row for each token."""
    t = weights(path)
    x = t["token_embd"][tokens] + t["token_types"][0] + t["position_embd"][: len(tokens)]
    x = layer_norm(x, t["token_embd_norm"], t["token_embd_norm.bias"])
    head = shape.width // shape.num_heads
    for layer in range(shape.num_layers):
        b = f"blk.{layer}."

        def linear(name: str, value: Any, b: str = b) -> Any:
            return value @ t[b + name].T + t[b + name + ".bias"]

        q, k, v = (
            linear(name, x).reshape(-1, shape.num_heads, head).transpose(1, 0, 2)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(head)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended = (scores @ v).transpose(1, 0, 2).reshape(len(tokens), shape.width)
        x = layer_norm(
            x + linear("attn_output", attended), t[b + "attn_output_norm"], t[b + "attn_output_norm.bias"]
        )
        inner = linear("ffn_down", gelu(linear("ffn_up", x)))
        x = layer_norm(x + inner, t[b + "layer_output_norm"], t[b + "layer_output_norm.bias"])
    return x


def score(path: Path, shape: Shape, tokens: Any) -> float:
    """What a reranker's head makes of the first token's state, before any sigmoid."""
    t = weights(path)
    inner = np.tanh(t["cls"] @ last_states(path, shape, tokens)[0] + t["cls.bias"])
    return float((t["cls.output"] @ inner + t["cls.output.bias"])[0])


def weights(path: Path) -> dict[str, Any]:
    """The tensors of a file, without the ending of their names."""
    tensors = gguf.GGUFReader(path).tensors
    return {one.name.removesuffix(".weight"): one.data.astype(np.float64) for one in tensors}


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON) * weight + bias


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
