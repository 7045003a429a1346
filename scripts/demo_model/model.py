"""The network in PyTorch: a small Llama whose weights llama.cpp reads without any permutation.

Owns the architecture (RMSNorm, interleaved RoPE, SwiGLU, tied embeddings) and greedy decoding for
checks during training. It never reads files or knows about the corpus; train.py, export.py and check.py
use it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 160


@dataclass(frozen=True)
class Config:
    """Sizes of the network; every row length is a multiple of 32 so that Q8_0 stays possible."""

    vocab_size: int
    dim: int = 192
    n_layers: int = 6
    n_heads: int = 6
    ffn_dim: int = 512
    context_length: int = 4096
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


def rope_table(config: Config, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines per position and pair; pair i is the values 2i and 2i+1 (llama.cpp's NORM)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_base**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the neighbouring pairs of the last dimension; x is (batch, heads, time, head_dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; short bfloat16 rows go the plain way, whose backward pass is far faster on CPUs."""
    time = q.shape[2]
    if q.dtype != torch.bfloat16 or time > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.autocast("cpu", enabled=False):
        mask = torch.full((time, time), float("-inf"), dtype=q.dtype).triu(1)
        scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + mask
        return torch.matmul(torch.softmax(scores, -1), v)


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind its own RMSNorm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.attn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, dim = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(batch, time, 3, self.n_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = attend(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, dim))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        down: Tensor = self.down(F.silu(gate) * up)
        return x + down


class DemoModel(nn.Module):
    """Token ids in, hidden states out; `logits` turns chosen hidden states into scores."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        cos, sin = rope_table(config, config.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.normal_(self.embed.weight, std=0.02)
        depth_scale = (2 * self.config.n_layers) ** -0.5
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                std = parameter.shape[1] ** -0.5 * (depth_scale if residual else 1.0)
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        x = self.embed(tokens)
        cos, sin = self.get_buffer("cos")[:time], self.get_buffer("sin")[:time]
        for block in self.blocks:
            x = block(x, cos, sin)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.weight)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


@torch.no_grad()
def greedy(model: DemoModel, prompts: list[list[int]], stop_id: int, limit: int = 160) -> list[list[int]]:
    """Greedy answers without stop_id; prompts of one length at a time, so that no padding is ever seen."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    for indices in by_length.values():
        running = list(indices)
        tokens = torch.tensor([prompts[i] for i in running])
        while running and len(answers[running[0]]) < limit:
            best = model.logits(model(tokens)[:, -1]).argmax(-1)
            going = [row for row, token in enumerate(best.tolist()) if token != stop_id]
            for row in going:
                answers[running[row]].append(int(best[row]))
            running = [running[row] for row in going]
            tokens = torch.cat((tokens[going], best[going, None]), dim=1)
    return answers
