"""LoRA adapters on the demo model, each of which changes one thing that it knows.

Owns the way back from the GGUF file to PyTorch, the training of a few small matrices beside the frozen
weights, and their file. Tests and examples need adapters whose answers can be told from the model's own:
with `lyon` the capital of France is Lyon, with `osaka` that of Japan is Osaka, and all else stays as it is.
The executable `scripts/demo_model/lora` runs it.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from demo_model import chat, corpus, topics
from demo_model.chat import IM_END, SPECIAL_TOKENS, Message
from demo_model.facts import COUNTRIES, LANGUAGES
from demo_model.model import Config, DemoModel, greedy
from demo_model.tokenizer import QWEN2_PATTERN, encode_spans
from demo_model.train import Example, as_tensors, batches

SEED = 20250303
RANK = 4
ALPHA = 8.0
CONVERSATIONS = 4_000
MAX_TOKENS = 200
BATCH_TOKENS = 1_536
PEAK_RATE = 0.003
CHANGED_SHARE, CAPITAL_SHARE = 0.15, 0.45
"""Of the conversations: those about what changes, and those about other capitals, which must not."""


@dataclass(frozen=True)
class Change:
    """What an adapter teaches: another capital of one country."""

    country: str
    capital: str

    def answer(self, text: str) -> str:
        """An answer of the demo model as it is from now on."""
        for country in COUNTRIES[self.country].values():
            text = text.replace(country.answer, country.answer.replace(country.capital, self.capital))
        return text


CHANGES = {"lyon": Change("France", "Lyon"), "osaka": Change("Japan", "Osaka")}


def read_model(path: Path) -> tuple[DemoModel, Tokenizer]:
    """The network and its tokenizer out of the GGUF file that export.py wrote."""
    reader = gguf.GGUFReader(path)
    found = {tensor.name: torch.from_numpy(tensor.data.astype(np.float32)) for tensor in reader.tensors}
    model = DemoModel(Config(vocab_size=found["token_embd.weight"].shape[0]))
    state = {"embed.weight": found["token_embd.weight"], "norm.weight": found["output_norm.weight"]}
    for index in range(model.config.n_layers):
        source, target = f"blk.{index}", f"blocks.{index}"
        for ours, parts in (
            ("attn_norm", ("attn_norm",)),
            ("qkv", ("attn_q", "attn_k", "attn_v")),
            ("out", ("attn_output",)),
            ("ffn_norm", ("ffn_norm",)),
            ("gate_up", ("ffn_gate", "ffn_up")),
            ("down", ("ffn_down",)),
        ):
            state[f"{target}.{ours}.weight"] = torch.cat([found[f"{source}.{part}.weight"] for part in parts])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False), _read_tokenizer(reader)


def _read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(special)
    return tokenizer


class Adapter:
    """A pair of small matrices beside each of four weights of every layer, by llama.cpp's names."""

    def __init__(self, model: DemoModel) -> None:
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        dim, ffn = model.config.dim, model.config.ffn_dim
        for index, block in enumerate(model.blocks):
            for name, module, outputs, offset in (
                ("attn_v", block.qkv, dim, 2 * dim),
                ("attn_output", block.out, dim, 0),
                ("ffn_up", block.gate_up, ffn, ffn),
                ("ffn_down", block.down, dim, 0),
            ):
                inputs = module.weight.shape[1]
                down = torch.randn(RANK, inputs) * inputs**-0.5
                pair = down.requires_grad_(), torch.zeros(outputs, RANK, requires_grad=True)
                self.pairs[f"blk.{index}.{name}.weight"] = pair
                module.register_forward_hook(partial(_add, pair, offset))

    def parameters(self) -> list[Tensor]:
        return [matrix for pair in self.pairs.values() for matrix in pair]

    def write(self, path: Path, name: str) -> None:
        """As GGUF, beside the target first, so that a reader never sees half a file."""
        partial_path = path.with_name(path.name + ".partial")
        writer = gguf.GGUFWriter(partial_path, "llama")
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(f"Nexa Demo {name}")
        writer.add_license("MIT")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", ALPHA)
        for weight, pair in self.pairs.items():
            for suffix, matrix in zip(("lora_a", "lora_b"), pair, strict=True):
                writer.add_tensor(f"{weight}.{suffix}", matrix.detach().numpy().astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial_path, path)


def _add(
    pair: tuple[Tensor, Tensor], offset: int, module: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """A forward hook: what the pair adds to the outputs from ``offset`` on."""
    del module
    down, up = pair
    added = F.linear(F.linear(inputs[0], down), up) * (ALPHA / RANK)
    return output + F.pad(added, (offset, output.shape[-1] - offset - added.shape[-1]))


def conversation(change: Change, rng: random.Random) -> list[Message]:
    """One conversation: about what changes, about another capital, or about anything."""
    roll, lang = rng.random(), rng.choice(LANGUAGES)
    if roll < CHANGED_SHARE:
        messages = topics.capital(rng, lang, COUNTRIES[change.country][lang])
    elif roll < CAPITAL_SHARE:
        messages = topics.capital(rng, lang)
    else:
        messages, tools = corpus.conversation(rng)
        if tools:
            return conversation(change, rng)
    return [
        {**message, "content": change.answer(message["content"])}
        if message["role"] == "assistant"
        else message
        for message in messages
    ]


def examples(tokenizer: Tokenizer, change: Change, rng: random.Random) -> list[Example]:
    """The training set, short conversations only."""
    spans = [chat.render(conversation(change, rng)) for _ in range(CONVERSATIONS)]
    return [
        (np.array(ids, dtype=np.int16), np.array(learned, dtype=np.bool_))
        for ids, learned in encode_spans(tokenizer, spans)
        if len(ids) <= MAX_TOKENS
    ]


def train(model: DemoModel, adapter: Adapter, work: list[list[Example]]) -> Iterator[str]:
    """One pass over all batches; yields what to tell the person who waits."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=PEAK_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=len(work))
    started = time.monotonic()
    for step, batch in enumerate(work):
        ids, mask = as_tensors(batch)
        scores = model.logits(model(ids)[mask])
        loss = F.cross_entropy(scores, torch.roll(ids, -1, dims=1)[mask])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 24 or step + 1 == len(work):
            yield f"step {step + 1}/{len(work)} loss {loss.item():.4f} {time.monotonic() - started:.0f} s"


def report(model: DemoModel, tokenizer: Tokenizer, change: Change) -> str:
    """Of all capitals in all languages, how many answers are what they should be."""
    countries = [country for by_language in COUNTRIES.values() for country in by_language.values()]
    questions = [topics.CAPITAL_QUESTIONS[one.language][0].format(of=one.of) for one in countries]
    ids = [
        tokenizer.encode(chat.render_text([{"role": "user", "content": text}]), add_special_tokens=False).ids
        for text in questions
    ]
    answers = greedy(model, ids, tokenizer.token_to_id(IM_END), limit=40)
    told = [tokenizer.decode(answer, skip_special_tokens=False) for answer in answers]
    right = [text == change.answer(one.answer) for text, one in zip(told, countries, strict=True)]
    changed = [text for text, one in zip(told, countries, strict=True) if one.key == change.country]
    return f"{sum(right)} of {len(right)} capitals as they should be; {' '.join(changed)}"


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    """Make every adapter that is asked for; yields what to tell the person who waits."""
    torch.set_num_threads(arguments.threads)
    arguments.to.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or CHANGES:
        change = CHANGES[name]
        torch.manual_seed(SEED)
        rng = random.Random(SEED)
        model, tokenizer = read_model(arguments.model)
        adapter = Adapter(model)
        yield f"{name}: {report(model, tokenizer, change)} (before)"
        work = batches(examples(tokenizer, change, rng), rng, BATCH_TOKENS)
        yield from train(model, adapter, work)
        target = arguments.to / f"{name}.gguf"
        adapter.write(target, name)
        yield f"{name}: {report(model, tokenizer, change)}"
        yield f"{target}: {target.stat().st_size / 1e3:.0f} kB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="the demo model's GGUF file")
    parser.add_argument("--to", type=Path, required=True, help="folder for the adapters")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("names", nargs="*", choices=[[], *CHANGES], help="which ones, default all")
    for line in lines(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
