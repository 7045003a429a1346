"""Training exchanges about everything the demo model does not know, and about nonsense.

Owns the filling of data/unknown.toml, gibberish and long pasted text. The answer is always the same
short sentence in the language of the question (English for gibberish); it never teaches a fact.
"""

from __future__ import annotations

import random

from demo_model.chat import Message
from demo_model.surface import roughen
from demo_model.tables import by_language
from demo_model.talk import UNKNOWN
from demo_model.topics import turn
from demo_model.wordlists import ADJECTIVES, NOUNS, PEOPLE, VERBS, filler, invented_word, random_word

Exchange = list[Message]

_QUESTIONS = by_language("unknown", "questions")
_DAYS = {
    "en": ["Monday", "Sunday", "Friday"],
    "es": ["lunes", "domingo", "viernes"],
    "pt": ["segunda-feira", "domingo"],
}
_MONTHS = {
    "en": ["March", "May", "October"],
    "es": ["marzo", "mayo", "octubre"],
    "pt": ["março", "maio", "outubro"],
}
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¿¡ 0123456789"


def _noun(rng: random.Random, lang: str) -> str:
    return rng.choice(NOUNS[lang]) if rng.random() < 0.75 else invented_word(rng)


def question(rng: random.Random, lang: str) -> str:
    """One question about something the model does not know."""
    text = rng.choice(_QUESTIONS[lang])
    slots = {
        "n": _noun(rng, lang),
        "m": _noun(rng, lang),
        "a": rng.choice(ADJECTIVES[lang]),
        "v": rng.choice(VERBS[lang]),
        "w": " ".join(invented_word(rng).capitalize() for _ in range(rng.choice((1, 1, 2)))),
        "p": rng.choice(PEOPLE) + (f" {invented_word(rng).capitalize()}" if rng.random() < 0.5 else ""),
        "y": str(rng.randint(1000, 2030)),
        "d": rng.choice(_DAYS[lang]),
        "t": rng.choice(_MONTHS[lang]),
    }
    text = text.format(**slots)
    return roughen(text[0].upper() + text[1:], rng, lang)


def gibberish(rng: random.Random) -> str:
    """Anything a keyboard, a cat or another alphabet may produce."""
    roll = rng.random()
    size = rng.choice((0, 1, 2, 3, 5, 8, 12, 20, 40))
    if roll < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(size))
    if roll < 0.5:
        return "".join(rng.choice(_SIGNS) for _ in range(size))
    if roll < 0.65:
        low, high = rng.choice(
            (
                (0x400, 0x450),
                (0x4E00, 0x5E00),
                (0x1F300, 0x1F640),
                (0x3040, 0x30FF),
                (0x600, 0x650),
                (0xA1, 0x250),
            )
        )
        return "".join(chr(rng.randint(low, high)) for _ in range(min(size, 12)))
    if roll < 0.75:
        return rng.choice("abcdefghijklmnopqrstuvwxyz0123456789") * size
    return " ".join(invented_word(rng) for _ in range(max(1, size // 3)))


def unknown(rng: random.Random, lang: str) -> Exchange:
    roll = rng.random()
    if roll < 0.12:
        return turn(gibberish(rng), UNKNOWN["en"])
    if roll < 0.2:
        words = [random_word(rng, lang) for _ in range(rng.randint(3, 14))]
        return turn(rng.choice(NOUNS[lang]) + " " + " ".join(words), UNKNOWN[lang])
    if roll < 0.24:
        both = f"{question(rng, lang)} {question(rng, lang)}"
        return turn(both, UNKNOWN[lang])
    return turn(question(rng, lang), UNKNOWN[lang])


def long_text(rng: random.Random, lang: str) -> Exchange:
    """A long pasted text, with or without a request around it."""
    text = filler(rng, lang, rng.choice((30, 60, 100, 160, 260)))
    request = {"en": "Summarize this text:", "es": "Resume este texto:", "pt": "Resuma este texto:"}[lang]
    if rng.random() < 0.5:
        text = rng.choice((f"{request}\n\n{text}", f"{text}\n\n{request.rstrip(':')}"))
    return turn(text, UNKNOWN[lang])
