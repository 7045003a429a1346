"""The conversations of the second training stage: short practice of what the first stage learns slowly.

Owns that mixture: sums with their working, copying (phrases, JSON, tools) and small talk of one turn, and
enough of the first corpus that nothing is forgotten. It makes no exchanges of its own; skills.py,
tooling.py and topics.py do. Run it to see examples: `python -m demo_model.practice 20`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

from demo_model import corpus, skills, tooling, topics
from demo_model.chat import Message
from demo_model.corpus import Conversation, conversations
from demo_model.facts import LANGUAGES
from demo_model.tooling import GET_TIME, GET_WEATHER, Toolbox

SEED = 20250202

_BOTH = Toolbox((GET_WEATHER, GET_TIME), (("weather", "get_weather", "city"), ("time", "get_time", "city")))
_BOTH_TURNED = Toolbox(_BOTH.definitions[::-1], _BOTH.callable[::-1])


def _turns(make: Callable[[random.Random, str], list[Message]], rng: random.Random) -> Conversation:
    """One to three exchanges of the same kind, now and then behind a system message."""
    lang = rng.choice(LANGUAGES)
    messages: list[Message] = []
    if rng.random() < 0.06:
        messages.append({"role": "system", "content": corpus.system_text(rng, lang)})
    for _ in range(rng.choice((1, 1, 2, 3))):
        messages += make(rng, lang)
    return messages, ()


def _sums(rng: random.Random) -> Conversation:
    return _turns(skills.sums, rng)


def _repeat(rng: random.Random) -> Conversation:
    return _turns(skills.repeat, rng)


def _json(rng: random.Random) -> Conversation:
    return _turns(skills.json_object, rng)


def _tools(rng: random.Random) -> Conversation:
    """Many questions to one set of tools, whose definitions are long and cost as much as ten answers."""
    toolbox = rng.choice((_BOTH, _BOTH_TURNED)) if rng.random() < 0.6 else tooling.random_toolbox(rng)
    messages: list[Message] = []
    for _ in range(rng.choice((2, 4, 5, 6))):
        messages += tooling.asked(rng, rng.choice(LANGUAGES), toolbox)
    return messages, toolbox.definitions


def _talk(rng: random.Random) -> Conversation:
    """Greetings, thanks, farewells and identity, nearly always as the first and only turn."""
    lang = rng.choice(LANGUAGES)
    messages = topics.short_talk(rng, lang)
    if rng.random() < 0.1:
        messages = topics.short_talk(rng, lang) + messages
    return messages, ()


# Shares of conversations, not of tokens: a conversation with tools is as long as twenty greetings.
_MIXTURE: tuple[tuple[Callable[[random.Random], Conversation], float], ...] = (
    (_sums, 24.0),
    (_repeat, 16.0),
    (_json, 8.0),
    (_tools, 3.0),
    (_talk, 36.0),
    (corpus.conversation, 13.0),
)
_MAKERS = [maker for maker, _ in _MIXTURE]
_WEIGHTS = [weight for _, weight in _MIXTURE]


def conversation(rng: random.Random) -> Conversation:
    """One conversation of the second stage and the tools it was given."""
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for spans in conversations(count, SEED, conversation):
        print("".join(span.text for span in spans))
        print("-" * 40)


if __name__ == "__main__":
    main()
