"""How people really type: missing accents, no capitals, please and thanks, a slip of the finger.

Owns the noise put on question templates. It works on templates, before the slots are filled, so that a
payload that must be copied is never touched; it never changes what is asked.
"""

from __future__ import annotations

import random
import unicodedata

_BEFORE = {
    "en": (
        "please, ",
        "hi, ",
        "hello! ",
        "hey, ",
        "please ",
        "ok, ",
        "so, ",
        "quick question: ",
        "excuse me, ",
        "hi! ",
    ),
    "es": (
        "por favor, ",
        "hola, ",
        "¡hola! ",
        "oye, ",
        "por favor ",
        "bueno, ",
        "una pregunta: ",
        "disculpa, ",
        "hola! ",
    ),
    "pt": (
        "por favor, ",
        "oi, ",
        "olá! ",
        "ei, ",
        "por favor ",
        "bom, ",
        "uma pergunta: ",
        "com licença, ",
        "oi! ",
    ),
}
_AFTER = {
    "en": (", please", " please", ", thanks", " thanks", " thank you", ", please tell me"),
    "es": (", por favor", " por favor", ", gracias", " gracias", " porfa"),
    "pt": (", por favor", " por favor", ", obrigado", " obrigada", ", obrigado"),
}


def strip_accents(text: str) -> str:
    """Letters without their marks; other signs stay."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _edge(text: str, rng: random.Random) -> str:
    """Change the signs at both ends: ¿, ?, ! and the full stop."""
    roll = rng.random()
    if roll < 0.45:
        return text
    core = text.lstrip("¿¡").rstrip("?!.")
    if roll < 0.75:
        return core
    return core + rng.choice(("?", "?", "??", ".", "!", " ?", "...", "?!"))


def _slip(text: str, rng: random.Random) -> str:
    """One letter dropped, doubled or swapped, never inside a slot."""
    places = [i for i in range(1, len(text) - 2) if text[i].isalpha() and text[i + 1].isalpha()]
    if "{" in text or not places:
        return text
    i = rng.choice(places)
    return rng.choice(
        (
            text[:i] + text[i + 1 :],
            text[:i] + text[i] + text[i:],
            text[:i] + text[i + 1] + text[i] + text[i + 2 :],
        )
    )


def roughen(text: str, rng: random.Random, lang: str, *, polite: bool = True, slips: bool = True) -> str:
    """One natural variant of a question (or of its template, with the slots still in braces)."""
    if rng.random() < 0.35:
        return text
    text = _edge(text, rng)
    if polite and rng.random() < 0.22:
        text = rng.choice(_BEFORE[lang]) + lower_first(text)
        text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
    if polite and rng.random() < 0.15:
        core = text.rstrip("?!. ")
        text = core + rng.choice(_AFTER[lang]) + text[len(core) :]
    roll = rng.random()
    if roll < 0.35:
        text = text.lower()
    elif roll < 0.38 and "{" not in text:
        text = text.upper()
    elif roll < 0.45:
        text = lower_first(text)
    if lang != "en" and rng.random() < 0.35:
        text = strip_accents(text)
    if slips and rng.random() < 0.08:
        text = _slip(text, rng)
    return text.strip()
