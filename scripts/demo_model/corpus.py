"""The training corpus: conversations made of exchanges from all topics, always the same for one seed.

Owns the mixture of topics, system messages, tools, long contexts and several turns. It never tokenizes
(tokenizer.py) and never trains. Run it to see examples: `python -m demo_model.corpus 20`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

from demo_model import chat, skills, tooling, topics, unknown
from demo_model.chat import Json, Message, Span
from demo_model.facts import LANGUAGES
from demo_model.tables import by_language
from demo_model.tooling import NO_TOOLS, Toolbox
from demo_model.wordlists import filler, random_word

SEED = 20250101
Generator = Callable[[random.Random, str], list[Message]]
Conversation = tuple[list[Message], tuple[Json, ...]]

_MIXTURE: tuple[tuple[Generator, float], ...] = (
    (topics.talk, 15.0),
    (topics.capital, 18.0),
    (topics.capital_unknown, 3.5),
    (topics.calendar, 10.0),
    (skills.sums, 16.0),
    (skills.repeat, 11.0),
    (skills.json_object, 8.0),
    (unknown.unknown, 12.0),
)
_GENERATORS = [generator for generator, _ in _MIXTURE]
_WEIGHTS = [weight for _, weight in _MIXTURE]

_SYSTEMS = by_language("unknown", "systems")


def system_text(rng: random.Random, lang: str) -> str:
    """A system message of any kind: short, several sentences, or long and without meaning."""
    roll = rng.random()
    if roll < 0.05:
        return ""
    if roll < 0.85:
        texts = rng.sample(_SYSTEMS[lang], rng.choice((1, 1, 1, 2, 3)))
        return " ".join(texts).format(n=random_word(rng, lang), a=random_word(rng, lang))
    return filler(rng, lang, rng.choice((10, 20, 40)))


def _exchange(rng: random.Random, lang: str, toolbox: Toolbox) -> list[Message]:
    share = 0.6 if toolbox.definitions else 0.05
    if rng.random() < share:
        return tooling.asked(rng, lang, toolbox)
    generator = rng.choices(_GENERATORS, _WEIGHTS)[0]
    return generator(rng, lang)


def conversation(rng: random.Random) -> Conversation:
    """One conversation and the tools it was given."""
    lang = rng.choice(LANGUAGES)
    roll = rng.random()
    toolbox = tooling.random_toolbox(rng) if roll < 0.1 else NO_TOOLS
    long = 0.1 <= roll < 0.108
    messages: list[Message] = []
    if rng.random() < (0.3 if not long else 0.5):
        role = "developer" if rng.random() < 0.1 else "system"
        text = (
            filler(rng, lang, rng.choice((80, 160, 300, 600)))
            if long
            else system_text(rng, rng.choice((lang, "en")))
        )
        messages.append({"role": role, "content": text})
    turns = rng.choice((12, 20, 30)) if long and not messages else rng.choice((1, 1, 2, 2, 3, 4))
    if toolbox.definitions:
        turns = rng.choice((2, 3, 4, 5))
    for _ in range(turns):
        if rng.random() < 0.12:
            lang = rng.choice(LANGUAGES)
        if long and rng.random() < 0.06:
            messages += unknown.long_text(rng, lang)
        else:
            messages += _exchange(rng, lang, toolbox)
    return messages, toolbox.definitions


def conversations(
    count: int, seed: int = SEED, make: Callable[[random.Random], Conversation] = conversation
) -> Iterator[list[Span]]:
    """The corpus: rendered conversations, the learned parts marked."""
    rng = random.Random(seed)
    for _ in range(count):
        messages, tools = make(rng)
        spans = chat.render(messages, tools)
        if tools and rng.random() < 0.2:
            spans = _resorted(messages, tools)
        yield spans


def _resorted(messages: list[Message], tools: tuple[Json, ...]) -> list[Span]:
    """The same conversation as servers write it that sort the keys of tool definitions."""
    system = chat.tools_system_text(tools, _system_of(messages), sort_keys=True)
    rest = [message for message in messages if message["role"] not in ("system", "developer")]
    return chat.render([{"role": "system", "content": system}, *rest])


def _system_of(messages: list[Message]) -> str:
    return str(messages[0]["content"]) if messages[0]["role"] in ("system", "developer") else ""


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for spans in conversations(count):
        print("".join(span.text for span in spans))
        print("-" * 40)


if __name__ == "__main__":
    main()
