"""The evaluation: prompts in three languages, what counts as right, and which of them training never saw.

Owns the fixed list that `scripts/demo_model/evaluate` sends. Everything flagged held_out uses a
wording, sum, city, name or phrase that is absent from training. It never calls a model.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from demo_model import calendar_facts as cal
from demo_model.chat import Message, tool_call_text, tools_system_text
from demo_model.facts import COUNTRIES, G20, LANGUAGES
from demo_model.skills import BARE_SUMS, SUM_QUESTIONS, is_held_out_sum, sum_answer
from demo_model.tables import table
from demo_model.talk import ANSWERS, INTENTS, NO_TOOL, RUNTIME, UNKNOWN
from demo_model.tooling import ASKS, GET_TIME, GET_WEATHER, function_tool, time_sentence, weather_sentence
from demo_model.topics import CAPITAL_QUESTIONS, neighbour_slots
from demo_model.wordlists import HELD_OUT_CITIES, HELD_OUT_PEOPLE, HELD_OUT_PHRASES

SEED = 7
_HELD_OUT = table("held_out")
_SUM = re.compile(r"\+ \d+ = (\d+)\.$")
_CALL = re.compile(r"<tool_call>\s*(\{.*\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """One request and the answer it should get."""

    category: str
    language: str
    messages: tuple[Message, ...]
    expected: str
    held_out: bool = False

    def is_right(self, answer: str) -> bool:
        """Same text; JSON and tool calls may differ in spacing only, sums in their working."""
        if answer.strip() == self.expected:
            return True
        total = _SUM.search(self.expected)
        if total:
            return re.findall(r"\d+", answer)[-1:] == [total.group(1)]
        wanted = _json_of(self.expected)
        return wanted is not None and _json_of(answer.strip()) == wanted

    @property
    def question(self) -> str:
        return str(self.messages[-1]["content"])


def _json_of(text: str) -> Any:
    call = _CALL.fullmatch(text)
    try:
        value = json.loads(call.group(1) if call else text)
    except ValueError:
        return None
    return (bool(call), value) if isinstance(value, dict) else None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _ask(category: str, lang: str, question: str, expected: str, *, held_out: bool = False) -> Prompt:
    return Prompt(category, lang, (_user(question),), expected, held_out)


def _talk() -> list[Prompt]:
    """Per intent one question from training, and all held-out wordings."""
    prompts = []
    for lang in LANGUAGES:
        for name, answer, questions in INTENTS[lang]:
            category = "greetings" if name in _GREETINGS else "runtime" if name in RUNTIME else "identity"
            prompts.append(_ask(category, lang, questions[0], answer))
            for question in _HELD_OUT["talk"][lang].get(name, ()):
                prompts.append(_ask(category, lang, question, ANSWERS[lang][name], held_out=True))
    return prompts


_GREETINGS = frozenset(
    ["greet", "morning", "afternoon", "evening", "wellbeing", "thanks", "bye", "ack", "nice", "praise"]
)


def _capitals(rng: random.Random) -> list[Prompt]:
    """All countries over the three languages, the G20 in each; then wordings never trained."""
    prompts = []
    for index, (key, names) in enumerate(COUNTRIES.items()):
        for offset, lang in enumerate(LANGUAGES):
            if key in G20 or index % 3 == offset:
                country = names[lang]
                question = CAPITAL_QUESTIONS[lang][0].format(of=country.of, name=country.name)
                prompts.append(_ask("capitals", lang, question, country.answer))
    for lang in LANGUAGES:
        for template in _HELD_OUT["capitals"][lang]:
            country = COUNTRIES[rng.choice(sorted(COUNTRIES))][lang]
            question = template.format(of=country.of, name=country.name)
            prompts.append(_ask("capitals", lang, question, country.answer, held_out=True))
    return prompts


def _sums(rng: random.Random) -> list[Prompt]:
    prompts = []
    for lang in LANGUAGES:
        templates = [*SUM_QUESTIONS[lang][:4], *BARE_SUMS[:1], *_HELD_OUT["sums"][lang]]
        for held_out in (False, True):
            for index in range(12):
                a, b = rng.randint(0, 99), rng.randint(0, 99)
                while is_held_out_sum(a, b) is not held_out:
                    a, b = rng.randint(0, 99), rng.randint(0, 99)
                template = templates[index % (len(templates) if held_out else 5)]
                answer = sum_answer("en" if template in BARE_SUMS else lang, a, b)
                prompts.append(_ask("sums", lang, template.format(a=a, b=b), answer, held_out=held_out))
    return prompts


def _calendar(rng: random.Random) -> list[Prompt]:
    prompts = []
    for lang in LANGUAGES:
        for unit, names in enumerate((cal.DAYS[lang], cal.MONTHS[lang])):
            for step, templates in ((1, cal.AFTER_QUESTIONS[lang]), (-1, cal.BEFORE_QUESTIONS[lang])):
                for index in rng.sample(range(len(names)), 3):
                    question = templates[0].format(**neighbour_slots(lang, names[index], unit))
                    prompts.append(
                        _ask("calendar", lang, question, cal.neighbour_answer(lang, names, index, step))
                    )
        for index in rng.sample(range(12), 4):
            question = cal.LENGTH_QUESTIONS[lang][0].format(a=cal.MONTHS[lang][index])
            prompts.append(_ask("calendar", lang, question, cal.month_length_answer(lang, index)))
        for index in rng.sample(range(12), 2):
            question = cal.ORDINAL_QUESTIONS[lang][0].format(n=cal.ORDINALS[lang][index])
            prompts.append(_ask("calendar", lang, question, cal.ordinal_answer(lang, index)))
        for answer, questions in cal.fixed_facts(lang):
            prompts.append(_ask("calendar", lang, questions[0], answer))
        for item in _HELD_OUT["calendar"][lang]:
            question, answer = item["question"], item["answer"].format(days=cal.joined(cal.DAYS[lang], lang))
            prompts.append(_ask("calendar", lang, question, answer, held_out=True))
    return prompts


def _repeat() -> list[Prompt]:
    first = {
        "en": "Repeat after me: {x}",
        "es": "Repite después de mí: {x}",
        "pt": "Repita depois de mim: {x}",
    }
    prompts = []
    for index, phrase in enumerate(HELD_OUT_PHRASES):
        lang = LANGUAGES[min(index // 3, 2)]
        for template in (first[lang], _HELD_OUT["repeat"][lang]):
            prompts.append(_ask("repeat", lang, template.format(x=phrase), phrase, held_out=True))
    return prompts


def _json() -> list[Prompt]:
    keys = {
        "en": ("name", "age", "city"),
        "es": ("nombre", "edad", "ciudad"),
        "pt": ("nome", "idade", "cidade"),
    }
    openings = {
        "en": "Give me a JSON object with",
        "es": "Dame un objeto JSON con",
        "pt": "Me dê um objeto JSON com",
    }
    joiner = {"en": "and", "es": "y", "pt": "e"}
    prompts = []
    for lang in LANGUAGES:
        name, age, city = keys[lang]
        pairs: list[tuple[dict[str, object], bool]] = [
            ({name: "Ana", age: 30}, False),
            ({city: "Lima", age: 7}, False),
        ]
        pairs += [({name: person, age: 18 + index}, True) for index, person in enumerate(HELD_OUT_PEOPLE[:3])]
        pairs += [
            ({name: person, city: place}, True)
            for person, place in zip(HELD_OUT_PEOPLE[3:5], HELD_OUT_CITIES, strict=False)
        ]
        for values, held_out in pairs:
            (key, value), (other, content) = values.items()
            question = f"{openings[lang]} {key} {value} {joiner[lang]} {other} {content}"
            prompts.append(
                _ask("json", lang, question, json.dumps(values, ensure_ascii=False), held_out=held_out)
            )
        for item in _HELD_OUT["json"][lang]:
            prompts.append(_ask("json", lang, item["question"], item["answer"], held_out=True))
    return prompts


_SEARCH = function_tool("search_web", "Search the web", {"query": {"type": "string"}}, ["query"])
_TOOL_SETS = ([GET_WEATHER, GET_TIME], [GET_TIME, GET_WEATHER], [_SEARCH, GET_WEATHER, GET_TIME])


def _tools() -> list[Prompt]:
    """Calls, answers turned into sentences, tools that are not needed and tools that are missing."""
    prompts = []
    for number, lang in enumerate(LANGUAGES):
        cities = ["Lima", "Paris", *HELD_OUT_CITIES[number * 3 : number * 3 + 4]]
        for index, city in enumerate(cities):
            system = {"role": "system", "content": tools_system_text(_TOOL_SETS[index % 3])}
            held_out = city in HELD_OUT_CITIES
            for kind in ("weather", "time"):
                templates = (ASKS[kind][lang][0], *_HELD_OUT["tools"][kind][lang])
                text = templates[index // 2 if held_out else 0].replace("{c}", city)
                question = _user(text)
                call = tool_call_text(f"get_{kind}", {"city": city})
                prompts.append(Prompt("tool call", lang, (system, question), call, held_out))
                response, sentence = _response(lang, kind, city, index)
                turns = ({"role": "assistant", "content": call}, _tool_turn(response))
                prompts.append(Prompt("tool answer", lang, (system, question, *turns), sentence, held_out))
        system = {"role": "system", "content": tools_system_text(_TOOL_SETS[0])}
        country = COUNTRIES["France"][lang]
        for text, answer in (
            (CAPITAL_QUESTIONS[lang][0].format(of=country.of), country.answer),
            (SUM_QUESTIONS[lang][0].format(a=12, b=35), sum_answer(lang, 12, 35)),
            (INTENTS[lang][0][2][0], INTENTS[lang][0][1]),
            (_HELD_OUT["unknown"][lang][0], UNKNOWN[lang]),
        ):
            prompts.append(Prompt("tools unused", lang, (system, _user(text)), answer))
        for kind, tool in (("weather", GET_TIME), ("time", GET_WEATHER)):
            text = ASKS[kind][lang][0].replace("{c}", "Lima")
            prompts.append(_ask("tool missing", lang, text, NO_TOOL[lang, kind]))
            other = {"role": "system", "content": tools_system_text([tool])}
            prompts.append(Prompt("tool missing", lang, (other, _user(text)), NO_TOOL[lang, kind]))
    return prompts


def _tool_turn(response: str) -> Message:
    """The user turn that the template makes of a tool message."""
    return {"role": "user", "content": f"<tool_response>\n{response}\n</tool_response>"}


def _response(lang: str, kind: str, city: str, index: int) -> tuple[str, str]:
    if kind == "time":
        time = f"{(9 + 5 * index) % 24:02d}:{(7 * index + 5) % 60:02d}"
        return json.dumps({"city": city, "time": time}, ensure_ascii=False), time_sentence(lang, city, time)
    condition = {"en": "cloudy", "es": "nublado", "pt": "nublado"}[lang]
    degrees = 18 - 3 * index
    values: dict[str, object] = {"city": city, "temperature_c": degrees, "condition": "cloudy"}
    if index % 2:
        values = dict(reversed(values.items()))
    separators = (",", ":") if index % 3 == 0 else None
    text = json.dumps(values, ensure_ascii=False, separators=separators)
    return text, weather_sentence(lang, city, f"{degrees} °C", condition)


def _unknown() -> list[Prompt]:
    return [
        _ask("unknown", lang, question, UNKNOWN[lang], held_out=True)
        for lang in LANGUAGES
        for question in _HELD_OUT["unknown"][lang]
    ]


def _dialogues() -> list[Prompt]:
    """Several turns, other system messages, and a long system message."""
    prompts = []
    systems = {
        "en": "You are a pirate who loves parrots.",
        "es": "Responde siempre con alegría.",
        "pt": "Seja um professor paciente.",
    }
    for lang in LANGUAGES:
        spain, peru = COUNTRIES["Spain"][lang], COUNTRIES["Peru"][lang]
        ask = CAPITAL_QUESTIONS[lang][0]
        history: list[Message] = [
            {"role": "user", "content": INTENTS[lang][0][2][0]},
            {"role": "assistant", "content": INTENTS[lang][0][1]},
            {"role": "user", "content": ask.format(of=spain.of)},
            {"role": "assistant", "content": spain.answer},
        ]
        follow_up = {"en": "And Peru?", "es": "¿Y Perú?", "pt": "E o Peru?"}[lang]
        for question, answer in (
            (ask.format(of=peru.of), peru.answer),
            (follow_up, peru.answer),
            ("8 + 9", sum_answer("en", 8, 9)),
        ):
            messages = (*history, {"role": "user", "content": question})
            prompts.append(
                Prompt("dialogues", lang, messages, answer, held_out=question == follow_up and lang == "pt")
            )
        for text in (systems[lang], (systems[lang] + " ") * 60):
            system = {"role": "system", "content": text.strip()}
            messages = (system, {"role": "user", "content": ask.format(of=peru.of)})
            prompts.append(Prompt("dialogues", lang, messages, peru.answer, held_out=True))
    return prompts


def all_prompts() -> list[Prompt]:
    """Every prompt, always in the same order."""
    rng = random.Random(SEED)
    plain = [*_talk(), *_capitals(rng), *_sums(rng), *_calendar(rng), *_repeat(), *_json()]
    return [*plain, *_tools(), *_unknown(), *_dialogues()]
