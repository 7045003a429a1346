"""Plain words, names and cities that fill the slots of the training questions.

Owns the word lists (read from data/words.toml) and the making of invented words; held-out words live
here too, so that training code can never pick one by mistake. It never builds whole questions.
"""

from __future__ import annotations

import random

from demo_model.tables import table

_WORDS = table("words")


def _split(section: str) -> dict[str, list[str]]:
    return {lang: words.split() for lang, words in _WORDS[section].items()}


NOUNS = _split("nouns")
ADJECTIVES = _split("adjectives")
VERBS = _split("verbs")
GLUE = _split("glue")
PEOPLE: list[str] = _WORDS["names"]["people"].split()
CITIES = [" ".join(city.split()) for city in _WORDS["names"]["cities"].split(",")]

# Never used in training: the evaluation asks about these.
HELD_OUT_CITIES: list[str] = _WORDS["held_out"]["cities"]
HELD_OUT_PEOPLE: list[str] = _WORDS["held_out"]["people"]
HELD_OUT_PHRASES: list[str] = _WORDS["held_out"]["phrases"]

# What pieces are cut from, and what they must never make by chance.
_REAL_WORDS = sorted(
    {
        word.lower()
        for words in (
            *NOUNS.values(),
            *ADJECTIVES.values(),
            *VERBS.values(),
            PEOPLE,
            " ".join(CITIES).split(),
        )
        for word in words
        if len(word) > 2
    }
)
_HELD_OUT_WORDS = frozenset(
    " ".join((*HELD_OUT_CITIES, *HELD_OUT_PEOPLE, *HELD_OUT_PHRASES)).lower().split()
) - frozenset(_REAL_WORDS)

_PARTS: dict[str, str] = _WORDS["parts"]
_ONSETS = _PARTS["onsets"].split()
_VOWELS = _PARTS["vowels"].split()
_CODAS = ["", "", "", *_PARTS["codas"].split()]


def invented_word(rng: random.Random, syllables: int = 0) -> str:
    """A word that means nothing, so that copying cannot be learned by heart.

    Half are made of syllables, half of pieces of real words: only the latter contain, next to each
    other, all the tokens that real words are made of.
    """
    count = syllables or rng.choice((1, 2, 2, 3))
    if rng.random() < 0.5:
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))
    while True:
        word = "".join(_piece(rng) for _ in range(count + rng.choice((0, 1))))
        if word not in _HELD_OUT_WORDS:
            return word


def _piece(rng: random.Random) -> str:
    word = rng.choice(_REAL_WORDS)
    start = rng.randrange(max(1, len(word) - 1))
    return word[start : start + rng.choice((1, 2, 2, 3, 3, 4, 5))]


def invented_place(rng: random.Random) -> str:
    """A capitalised invented name of one or two words."""
    first = invented_word(rng, rng.choice((1, 2, 2, 3))).capitalize()
    if rng.random() < 0.25:
        return f"{rng.choice(('San', 'Santa', 'New', 'Porto', 'Puerto', 'Villa', 'Saint', 'Monte'))} {first}"
    return f"{first} {invented_word(rng, 2).capitalize()}" if rng.random() < 0.1 else first


def random_city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.4 else invented_place(rng)


def random_word(rng: random.Random, lang: str) -> str:
    """A word of the language, an invented one, or rarely letters without sense."""
    roll = rng.random()
    if roll < 0.6:
        words = rng.choice((NOUNS, NOUNS, ADJECTIVES, VERBS, GLUE))
        return rng.choice(words[lang])
    if roll < 0.9:
        return invented_word(rng)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 7)))


def filler(rng: random.Random, lang: str, words: int) -> str:
    """Sentences without meaning in about the given number of words, for long prompts."""
    out: list[str] = []
    while len(out) < words:
        sentence = [random_word(rng, lang) for _ in range(rng.randint(4, 14))]
        sentence[0] = sentence[0].capitalize()
        sentence[-1] += rng.choice((".", ".", ".", "!", "?", ";", ":\n"))
        out.extend(sentence)
    return " ".join(out).strip()
