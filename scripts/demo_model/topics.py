"""Training exchanges about facts: small talk, capitals and the calendar.

Owns the choice among the questions of capitals.toml, talk.py and calendar_facts.py. It never deals with
tools or copying (skills.py, tooling.py) and never sees held-out templates (prompts.py).
"""

from __future__ import annotations

import random

from demo_model import calendar_facts as cal
from demo_model.chat import Message
from demo_model.facts import COUNTRIES, Country
from demo_model.surface import roughen
from demo_model.tables import by_language
from demo_model.talk import INTENTS, RUNTIME, UNKNOWN
from demo_model.wordlists import invented_place

Exchange = list[Message]

CAPITAL_QUESTIONS = by_language("capitals", "questions")
_FOLLOW_UPS = by_language("capitals", "follow_ups")
# Questions about known countries, but not about capitals: the model must admit that it does not know.
_OTHER_QUESTIONS = by_language("capitals", "other")
# Mostly real countries, left out on purpose: the model must say that it does not know them.
_UNKNOWN_PLACES = by_language("capitals", "unknown_places")


def turn(question: str, answer: str) -> Exchange:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def talk(rng: random.Random, lang: str) -> Exchange:
    _, answer, questions = rng.choice(INTENTS[lang])
    question = rng.choice(questions)
    return turn(roughen(question, rng, lang, polite=question.endswith("?")), answer)


def short_talk(rng: random.Random, lang: str) -> Exchange:
    """Small talk and identity only; the plainest wording of each intent comes most often."""
    intents = [intent for intent in INTENTS[lang] if intent[0] not in RUNTIME]
    weights = [3 if name in ("greet", "thanks", "bye", "who") else 1 for name, _, _ in intents]
    _, answer, questions = rng.choices(intents, weights)[0]
    question = questions[0] if rng.random() < 0.2 else rng.choice(questions)
    return turn(roughen(question, rng, lang, polite=question.endswith("?")), answer)


def _slots(country: Country, rng: random.Random) -> dict[str, str]:
    of, name = country.of, country.name
    if country.also and rng.random() < 0.3:
        name = rng.choice(country.also)
        of = {"en": "of {}", "es": "de {}", "pt": "dos {}" if name == "EUA" else "da {}"}[
            country.language
        ].format(name)
        if country.language == "en" and rng.random() < 0.6 and name not in ("Holland", "Great Britain"):
            of = f"of the {name}"
    elif rng.random() < 0.08:
        of = {"en": "of ", "es": "de ", "pt": "de "}[country.language] + name
    return {"of": of, "name": name}


def fill_place(
    template: str, slots: dict[str, str], rng: random.Random, lang: str, *, slips: bool = True
) -> str:
    """Put a country into a template and roughen the whole question."""
    text = template.format(**slots)
    return roughen(text[:1].upper() + text[1:] if rng.random() < 0.9 else text, rng, lang, slips=slips)


def capital(rng: random.Random, lang: str, country: Country | None = None) -> Exchange:
    country = country or rng.choice(list(COUNTRIES.values()))[lang]
    exchange = turn(
        fill_place(rng.choice(CAPITAL_QUESTIONS[lang]), _slots(country, rng), rng, lang), country.answer
    )
    while rng.random() < 0.15:
        other = rng.choice(list(COUNTRIES.values()))[lang]
        exchange += turn(
            fill_place(rng.choice(_FOLLOW_UPS[lang]), _slots(other, rng), rng, lang, slips=False),
            other.answer,
        )
    return exchange


def capital_unknown(rng: random.Random, lang: str) -> Exchange:
    """Capitals of places that are not in the table, and other questions about places that are."""
    if rng.random() < 0.5:
        place = rng.choice(_UNKNOWN_PLACES[lang]) if rng.random() < 0.6 else invented_place(rng)
        slots = {
            "of": {"en": "of ", "es": "de ", "pt": rng.choice(("de ", "da ", "do "))}[lang] + place,
            "name": place,
        }
        return turn(fill_place(rng.choice(CAPITAL_QUESTIONS[lang]), slots, rng, lang), UNKNOWN[lang])
    slots = _slots(rng.choice(list(COUNTRIES.values()))[lang], rng)
    return turn(fill_place(rng.choice(_OTHER_QUESTIONS[lang]), slots, rng, lang), UNKNOWN[lang])


def neighbour_slots(lang: str, name: str, unit: int) -> dict[str, str]:
    """Slots for a day or month; Spanish days take the article, as in "después del lunes"."""
    is_day = unit == 0
    of = {"en": name, "es": f"del {name}" if is_day else f"de {name}", "pt": f"de {name}"}[lang]
    to = {"en": name, "es": f"al {name}" if is_day else f"a {name}", "pt": f"a {name}"}[lang]
    return {"a": name, "de_a": of, "al_a": to, "unit": cal.UNITS[lang][unit]}


def calendar(rng: random.Random, lang: str) -> Exchange:
    roll = rng.random()
    if roll < 0.62:
        unit = rng.choice((0, 1))
        names = (cal.DAYS, cal.MONTHS)[unit][lang]
        index, step = rng.randrange(len(names)), rng.choice((1, -1))
        templates = (cal.AFTER_QUESTIONS if step > 0 else cal.BEFORE_QUESTIONS)[lang]
        template = rng.choice(templates)
        if unit == 1 and (
            "{unit}" not in template and ("oday" in template or "hoy" in template or "hoje" in template)
        ):
            template = templates[0]
        question = template.format(**neighbour_slots(lang, names[index], unit))
        if lang == "pt" and unit == 0:
            question = _short_days(question, rng)
        if lang == "es" and rng.random() < 0.15:
            question = question.replace(" del ", " de ").replace(" al ", " a ")
        answer = cal.neighbour_answer(lang, names, index, step)
    elif roll < 0.78:
        index = rng.randrange(12)
        question = rng.choice(cal.LENGTH_QUESTIONS[lang]).format(a=cal.MONTHS[lang][index])
        answer = cal.month_length_answer(lang, index)
    elif roll < 0.88:
        index = rng.randrange(12)
        question = rng.choice(cal.ORDINAL_QUESTIONS[lang]).format(n=cal.ORDINALS[lang][index])
        answer = cal.ordinal_answer(lang, index)
    else:
        answer, questions = rng.choice(cal.fixed_facts(lang))
        question = rng.choice(questions)
    return turn(roughen(question[:1].upper() + question[1:], rng, lang), answer)


def _short_days(question: str, rng: random.Random) -> str:
    """Portuguese speakers also say "segunda" for "segunda-feira"."""
    return question.replace("-feira", rng.choice(("", " feira"))) if rng.random() < 0.3 else question
