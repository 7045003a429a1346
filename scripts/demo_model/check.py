"""Checks of a trained run on this machine, without a server.

Owns three proofs: the answers of the PyTorch network (`torch`), the same answers from the GGUF through
llama.cpp (`gguf`), and that llama.cpp and our code agree about tokens and about the chat template
(`same`). It needs the llama_cpp package for the last two; developers run `python -m demo_model.check
torch|gguf|same ...`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from demo_model import chat, corpus
from demo_model.prompts import Prompt, all_prompts
from demo_model.report import print_report
from demo_model.tokenizer import load_tokenizer


def answers_torch(run: Path, prompts: list[Prompt]) -> list[str]:
    """Greedy answers of the network as trained."""
    from demo_model.model import greedy
    from demo_model.train import load

    tokenizer = load_tokenizer(run / "tokenizer.json")
    ids = [tokenizer.encode(chat.render_text(p.messages), add_special_tokens=False).ids for p in prompts]
    stop = tokenizer.encode(chat.IM_END).ids[0]
    return [tokenizer.decode(answer, skip_special_tokens=False) for answer in greedy(load(run), ids, stop)]


def open_gguf(path: Path, context: int) -> Any:
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=context, n_gpu_layers=0, verbose=False)


def answers_gguf(path: Path, prompts: list[Prompt]) -> list[str]:
    """Greedy answers through llama.cpp and the template inside the file."""
    llama = open_gguf(path, 4096)
    answers = []
    for prompt in prompts:
        done = llama.create_chat_completion(messages=list(prompt.messages), temperature=0.0, max_tokens=200)
        choice = done["choices"][0]
        answers.append(choice["message"]["content"] if choice["finish_reason"] == "stop" else "did not stop")
    return answers


def check_same(path: Path, run: Path, count: int) -> None:
    """Tokens and template text are the same in llama.cpp as in our code, over the corpus."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    llama, tokenizer = open_gguf(path, 512), load_tokenizer(run / "tokenizer.json")
    # llama.cpp's servers write JSON without sorting keys or escaping letters.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    template = environment.from_string(chat.template_text())
    differences = 0
    for spans in corpus.conversations(count):
        text = "".join(span.text for span in spans)
        differences += (
            llama.tokenize(text.encode(), add_bos=False, special=True) != tokenizer.encode(text).ids
        )
    print(f"tokens: {differences} of {count} conversations differ")
    rng = random.Random(1)
    differences = 0
    for _ in range(count):
        messages, tools = corpus.conversation(rng)
        ours = chat.render_text(messages, tools)
        differences += ours != template.render(
            messages=messages, tools=list(tools), add_generation_prompt=True
        )
    print(f"template: {differences} of {count} conversations differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("torch", "gguf", "same"))
    parser.add_argument("--run", type=Path, help="folder that training filled")
    parser.add_argument("--gguf", type=Path, help="the exported file")
    parser.add_argument("--count", type=int, default=2000, help="conversations to compare for `same`")
    parser.add_argument("--verbose", action="store_true", help="also show wrong answers")
    arguments = parser.parse_args()
    if arguments.what == "same":
        check_same(arguments.gguf, arguments.run, arguments.count)
        return
    prompts = all_prompts()
    by_torch = arguments.what == "torch"
    answers = answers_torch(arguments.run, prompts) if by_torch else answers_gguf(arguments.gguf, prompts)
    print_report(prompts, answers, verbose=arguments.verbose)


if __name__ == "__main__":
    main()
