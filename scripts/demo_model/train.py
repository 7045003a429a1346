"""Training of the demo model on CPU in two stages: corpus, tokenizer, network, all with fixed seeds.

Owns the optimisation loop, its batches and its checkpoints. It never writes the GGUF (export.py). The
executable `scripts/demo_model/train` runs it; `python -m demo_model.train --out DIR` does the same by
hand. Stage one learns from corpus.py, stage two goes on from its weights with practice.py; with
`--stage 2 --from FOLDER` only the second runs. DIR gets tokenizer.json and model.pt.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo_model import corpus, practice
from demo_model.corpus import SEED, Conversation, conversations
from demo_model.model import Config, DemoModel
from demo_model.tokenizer import encode_spans, load_tokenizer, train_tokenizer

TOKENIZER_CONVERSATIONS = 20_000
MAX_TOKENS = 3_584
POOL = 2_048
LEARNED_SHARE = 0.3

Example = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Stage:
    """What one stage learns from, and how fast; the rates are those of AdamW and of Muon at their peak."""

    make: Callable[[random.Random], Conversation]
    seed: int
    conversations: int
    batch_tokens: int
    peak_rate: float
    matrix_rate: float
    warmup_steps: int
    cosine: bool

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak: linear warm-up, then linear or cosine decay to zero."""
        left = max(0.0, (steps - step) / (steps - self.warmup_steps))
        decay = (1 - math.cos(math.pi * min(1.0, left))) / 2 if self.cosine else left
        return min((step + 1) / self.warmup_steps, decay)


# The second stage has small batches: it needs many steps more than it needs clean gradients.
STAGES = {
    1: Stage(corpus.conversation, SEED, 52_000, 5_120, 0.003, 0.02, 60, cosine=False),
    2: Stage(practice.conversation, practice.SEED, 54_000, 3_072, 0.001, 0.01, 30, cosine=True),
}


def make_tokenizer(path: Path) -> None:
    """Learn the vocabulary from the first part of the corpus."""
    train_tokenizer(conversations(TOKENIZER_CONVERSATIONS)).save(str(path))


def make_examples(tokenizer_path: Path, stage: Stage) -> list[Example]:
    """Encode all conversations of a stage."""
    tokenizer = load_tokenizer(tokenizer_path)
    examples: list[Example] = []
    chunk = []
    for spans in conversations(stage.conversations, stage.seed, stage.make):
        chunk.append(spans)
        if len(chunk) == 4096:
            examples += _encoded(tokenizer, chunk)
            chunk = []
    return examples + _encoded(tokenizer, chunk)


def _encoded(tokenizer: object, chunk: list) -> list[Example]:  # type: ignore[type-arg]
    pairs = encode_spans(tokenizer, chunk)  # type: ignore[arg-type]
    return [
        (np.array(ids, dtype=np.int16), np.array(learned, dtype=np.bool_))
        for ids, learned in pairs
        if len(ids) <= MAX_TOKENS
    ]


def batches(examples: list[Example], rng: random.Random, batch_tokens: int) -> list[list[Example]]:
    """Examples of like length together: right padding, which causal attention never sees, stays small."""
    out: list[list[Example]] = []
    for start in range(0, len(examples), POOL):
        pool = sorted(examples[start : start + POOL], key=lambda example: len(example[0]))
        batch: list[Example] = []
        made: list[list[Example]] = []
        for example in pool:
            if batch and (len(batch) + 1) * len(example[0]) > batch_tokens:
                made.append(batch)
                batch = []
            batch.append(example)
        made.append(batch)
        rng.shuffle(made)
        out += made
    return out


def as_tensors(batch: list[Example]) -> tuple[Tensor, Tensor]:
    """Padded ids, and the mask of positions whose next token is learned."""
    width = max(len(ids) for ids, _ in batch)
    ids = np.zeros((len(batch), width), dtype=np.int64)
    mask = np.zeros((len(batch), width), dtype=np.bool_)
    for row, (tokens, learned) in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens) - 1] = learned[1:]
    return torch.from_numpy(ids), torch.from_numpy(mask)


def make_optimizers(model: DemoModel, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    others = [
        parameter
        for name, parameter in model.named_parameters()
        if "blocks" not in name or parameter.ndim != 2
    ]
    return [
        torch.optim.Muon(matrices, lr=stage.matrix_rate, momentum=0.95, weight_decay=0.01, ns_steps=5),
        torch.optim.AdamW(others, lr=stage.peak_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: DemoModel, work: list[list[Example]], out: Path, stage: Stage) -> None:
    """One pass over all batches."""
    optimizers = make_optimizers(model, stage)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    started, shown, seen = time.monotonic(), 0.0, 0
    for step, batch in enumerate(work):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * stage.rate(step, len(work))
        ids, mask = as_tensors(batch)
        seen += ids.numel()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model.logits(model(ids)[mask])
        targets = torch.roll(ids, -1, dims=1)[mask]
        total = F.cross_entropy(scores.float(), targets, reduction="sum")
        torch.autograd.backward(total / (LEARNED_SHARE * ids.numel()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        shown = 0.9 * shown + 0.1 * (total.item() / len(targets)) if step else total.item() / len(targets)
        if step % 50 == 49:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{len(work)} loss {shown:.4f} {seen / seconds:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )
        if step % 500 == 499:
            save(model, out)
    save(model, out)


def save(model: DemoModel, out: Path) -> None:
    torch.save({"config": model.config.as_dict(), "weights": model.state_dict()}, out / "model.pt")


def load(out: Path) -> DemoModel:
    saved = torch.load(out / "model.pt", weights_only=True)
    model = DemoModel(Config(**saved["config"]))
    model.load_state_dict(saved["weights"])
    return model.eval()


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    """Do everything in order; yields what to tell the person who waits."""
    started = time.monotonic()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    if arguments.stage == 2:
        source: Path = arguments.source
        model = load(source).train()
        if source.resolve() != out.resolve():
            shutil.copyfile(source / "tokenizer.json", out / "tokenizer.json")
    else:
        make_tokenizer(out / "tokenizer.json")
        model = DemoModel(Config(vocab_size=2048))
    yield f"{model.parameter_count()} parameters"
    for number in (arguments.stage,) if arguments.stage else tuple(STAGES):
        stage = STAGES[number]
        examples = make_examples(out / "tokenizer.json", stage)
        tokens = sum(len(ids) for ids, _ in examples)
        yield f"stage {number}: {len(examples)} conversations, {tokens / 1e6:.1f} million tokens"
        train(model, batches(examples, random.Random(stage.seed), stage.batch_tokens), out, stage)
    yield f"trained in {(time.monotonic() - started) / 60:.1f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json and model.pt")
    parser.add_argument("--stage", type=int, choices=tuple(STAGES), help="run only this stage, default both")
    parser.add_argument("--from", type=Path, dest="source", help="folder of stage one, for --stage 2")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.source = arguments.source or arguments.out
    for line in lines(arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
