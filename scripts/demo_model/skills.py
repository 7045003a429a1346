"""Training exchanges that compute or copy: sums, repeat after me, small JSON objects.

Owns the filling of the templates in data/skills.toml and the rule for which sums are held out of
training. It never uses the held-out words.
"""

from __future__ import annotations

import json
import random
import zlib

from demo_model.chat import Message
from demo_model.surface import roughen
from demo_model.tables import by_language
from demo_model.talk import ONLY_SMALL_SUMS
from demo_model.topics import turn
from demo_model.wordlists import HELD_OUT_PEOPLE, NOUNS, PEOPLE, invented_word, random_city, random_word

Exchange = list[Message]

SUM_QUESTIONS = by_language("skills", "sums")
BARE_SUMS = by_language("skills", "bare_sums")["any"]
_OTHER_MATHS = by_language("skills", "other_maths")
_REPEAT_QUESTIONS = by_language("skills", "repeat")
_JSON_OPENINGS = by_language("skills", "json_openings")
_KEYS = {
    "en": {
        "text": "color title animal fruit",
        "name": "name author user",
        "place": "city country",
        "number": "age price id year",
    },
    "es": {
        "text": "color título animal fruta",
        "name": "nombre autor usuario",
        "place": "ciudad país",
        "number": "edad precio id año",
    },
    "pt": {
        "text": "cor título animal fruta",
        "name": "nome autor usuário",
        "place": "cidade país",
        "number": "idade preço id ano",
    },
}
_FLAGS = {"en": "active done ready", "es": "activo listo hecho", "pt": "ativo pronto feito"}


_WORKING = {
    "en": ("Ones", "Tens", "So"),
    "es": ("Unidades", "Decenas", "Entonces"),
    "pt": ("Unidades", "Dezenas", "Então"),
}


def is_held_out_sum(a: int, b: int) -> bool:
    """About one sum in ten never appears in training, in neither order."""
    low, high = sorted((a, b))
    return zlib.crc32(f"{low}+{high}".encode()) % 10 == 0


def sum_answer(lang: str, a: int, b: int) -> str:
    """The sum, with the working where a number has two digits: a tiny network can learn the steps, but
    not five thousand sums by heart."""
    result = f"{a} + {b} = {a + b}."
    if a < 10 and b < 10:
        return result
    ones, tens, so = _WORKING[lang]
    unit = a % 10 + b % 10
    carry = unit // 10
    ten = a // 10 + b // 10 + carry
    steps = f"{ones}: {a % 10} + {b % 10} = {unit}. {tens}: {a // 10} + {b // 10} + {carry} = {ten}."
    return f"{steps} {so} {result}"


def _numbers(rng: random.Random) -> tuple[int, int]:
    """Two numbers to add, none of the held-out sums; one in seven has one digit on both sides."""
    while True:
        small = rng.random() < 0.15
        a, b = (rng.randint(0, 9) if small or rng.random() < 0.15 else rng.randint(10, 99) for _ in range(2))
        if not is_held_out_sum(a, b):
            return a, b


def sums(rng: random.Random, lang: str) -> Exchange:
    if rng.random() < 0.08:
        slots = {"a": rng.randint(0, 99), "b": rng.randint(0, 99), "c": rng.randint(100, 9999)}
        question = roughen(rng.choice(_OTHER_MATHS[lang]), rng, lang).format(**slots)
        return turn(question, ONLY_SMALL_SUMS["en" if question[0].isdigit() else lang])
    a, b = _numbers(rng)
    bare = rng.random() < 0.3
    template = rng.choice(BARE_SUMS) if bare else roughen(rng.choice(SUM_QUESTIONS[lang]), rng, lang)
    if "+" in template and rng.random() < 0.15:
        template = template.replace(" + ", "+")
    # A bare sum says nothing about the language, so that its working is always English.
    return turn(template.format(a=a, b=b), sum_answer("en" if bare else lang, a, b))


def phrase(rng: random.Random, lang: str) -> str:
    """A short phrase worth repeating: words, names, letters, digits, sometimes with signs."""
    words: list[str] = []
    for _ in range(rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 8))):
        roll = rng.random()
        if roll < 0.75:
            words.append(random_word(rng, lang))
        elif roll < 0.82:
            words.append(str(rng.randint(0, 9999)))
        elif roll < 0.9:
            words.append(rng.choice(PEOPLE))
        else:
            words.append(invented_word(rng).capitalize())
    style = rng.random()
    text = " ".join(words)
    if style < 0.15:
        text = text[0].upper() + text[1:]
    elif style < 0.22:
        text = " ".join(word.capitalize() for word in words)
    elif style < 0.25:
        text = text.upper()
    return text + rng.choice(("", "", "", "", "", "", ".", "!", "?"))


def repeat(rng: random.Random, lang: str) -> Exchange:
    payload = phrase(rng, rng.choice((lang, lang, lang, "en", "es", "pt")))
    template = rng.choice(_REPEAT_QUESTIONS[lang])
    if rng.random() < 0.3:
        template = template.lower() if rng.random() < 0.6 else template.replace("í", "i").replace("é", "e")
    return turn(template.replace("{x}", payload), payload)


def _pair(rng: random.Random, lang: str) -> tuple[str, object, str]:
    """A key, its value, and how the question writes the value."""
    kind = rng.choice(("text", "name", "place", "number", "number", "flag", "free"))
    if kind == "number":
        number = rng.choice((rng.randint(0, 99), rng.randint(0, 99), rng.randint(100, 3000)))
        return rng.choice(_KEYS[lang]["number"].split()), number, str(number)
    if kind == "flag":
        flag = rng.random() < 0.5
        return rng.choice(_FLAGS[lang].split()), flag, "true" if flag else "false"
    if kind == "free":
        key = _plain_word(rng, lang)
        if rng.random() < 0.4:
            number = rng.randint(0, 999)
            return key, number, str(number)
        word = _plain_word(rng, lang)
        return key, word, word
    if kind == "name":
        value = rng.choice(PEOPLE) if rng.random() < 0.5 else invented_word(rng, 2).capitalize()
    elif kind == "place":
        value = random_city(rng)
    else:
        value = _plain_word(rng, lang)
    assert value not in HELD_OUT_PEOPLE
    return rng.choice(_KEYS[lang][kind].split()), value, value


def _plain_word(rng: random.Random, lang: str) -> str:
    """A noun or an invented word: no "and", which would make the question ambiguous."""
    return rng.choice(NOUNS[lang]) if rng.random() < 0.6 else invented_word(rng)


def json_object(rng: random.Random, lang: str) -> Exchange:
    pairs: dict[str, tuple[object, str]] = {}
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        key, value, written = _pair(rng, lang)
        pairs[key] = (value, written)
    style = rng.choice((" ", " ", " ", " ", "=", ": ", " = ", "quoted"))
    parts = []
    for key, (value, written) in pairs.items():
        if style == "quoted":
            parts.append(f'"{key}": {json.dumps(value, ensure_ascii=False)}')
        else:
            quoted = (
                isinstance(value, str)
                and (" " in value or rng.random() < 0.1)
                and style == " "
                and rng.random() < 0.6
            )
            parts.append(f'{key}{style}"{written}"' if quoted else f"{key}{style}{written}")
    last = {"en": " and ", "es": " y ", "pt": " e "}[lang] if rng.random() < 0.75 else ", "
    listing = ", ".join(parts[:-1]) + last + parts[-1] if len(parts) > 1 else parts[0]
    question = roughen(rng.choice(_JSON_OPENINGS[lang]), rng, lang).replace("{x}", listing)
    return turn(question, json.dumps({key: value for key, (value, _) in pairs.items()}, ensure_ascii=False))
