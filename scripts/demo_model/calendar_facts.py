"""Days, months, ordinals: the calendar the demo model knows.

Owns calendar sentences in three languages and the reading of data/calendar.toml. It never adds noise
and never chooses at random; topics.py does.
"""

from __future__ import annotations

from demo_model.tables import by_language, table

DAYS = by_language("calendar", "days")
MONTHS = by_language("calendar", "months")
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = by_language("calendar", "ordinals")
UNITS = {"en": ("day", "month"), "es": ("día", "mes"), "pt": ("dia", "mês")}

AFTER_QUESTIONS = by_language("calendar", "after")
BEFORE_QUESTIONS = by_language("calendar", "before")
LENGTH_QUESTIONS = by_language("calendar", "length")
ORDINAL_QUESTIONS = by_language("calendar", "ordinal")

AFTER_ANSWER = {
    "en": "{b} comes after {a}.",
    "es": "Después de {a} viene {b}.",
    "pt": "Depois de {a} vem {b}.",
}
BEFORE_ANSWER = {
    "en": "{b} comes before {a}.",
    "es": "Antes de {a} viene {b}.",
    "pt": "Antes de {a} vem {b}.",
}
ORDINAL_ANSWER = {
    "en": "The {n} month of the year is {a}.",
    "es": "El {n} mes del año es {a}.",
    "pt": "O {n} mês do ano é {a}.",
}


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def joined(words: list[str], lang: str) -> str:
    """A comma list with the language's word for "and"."""
    last = {"en": " and ", "es": " y ", "pt": " e "}[lang]
    return ", ".join(words[:-1]) + last + words[-1]


def neighbour_answer(lang: str, names: list[str], index: int, step: int) -> str:
    """The sentence that says what comes after (step 1) or before (step -1) names[index]."""
    template = (AFTER_ANSWER if step > 0 else BEFORE_ANSWER)[lang]
    if lang == "es" and names is DAYS["es"]:
        template = template.replace("de {a} viene {b}", "del {a} viene el {b}")
    return template.format(a=names[index], b=names[(index + step) % len(names)])


def month_length_answer(lang: str, index: int) -> str:
    name = sentence_case(MONTHS[lang][index])
    if index == 1:
        return {
            "en": f"{name} has 28 days, or 29 in a leap year.",
            "es": f"{name} tiene 28 días, o 29 si el año es bisiesto.",
            "pt": f"{name} tem 28 dias, ou 29 se o ano for bissexto.",
        }[lang]
    verb, unit = {"en": ("has", "days"), "es": ("tiene", "días"), "pt": ("tem", "dias")}[lang]
    return f"{name} {verb} {MONTH_LENGTHS[index]} {unit}."


def ordinal_answer(lang: str, index: int) -> str:
    return ORDINAL_ANSWER[lang].format(n=ORDINALS[lang][index], a=MONTHS[lang][index])


def fixed_facts(lang: str) -> list[tuple[str, tuple[str, ...]]]:
    """Facts without slots, each with its training questions."""
    days, months = joined(DAYS[lang], lang), joined(MONTHS[lang], lang)
    facts = table("calendar")["fixed"][lang]
    return [(fact["answer"].format(days=days, months=months), tuple(fact["questions"])) for fact in facts]
