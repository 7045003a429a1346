"""Training exchanges around tools: when to call get_weather and get_time, and how to tell what they
answered.

Owns tool definitions and their variants, the questions that need a tool, the shapes of tool answers and
the sentences made of them. It never decides where tools appear; corpus.py does.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from demo_model.chat import Json, Message, tool_call_text
from demo_model.surface import roughen
from demo_model.tables import table
from demo_model.talk import NO_TOOL
from demo_model.topics import turn
from demo_model.wordlists import HELD_OUT_CITIES, invented_word, random_city

Exchange = list[Message]


def function_tool(name: str, description: str, properties: Json, required: list[str]) -> Json:
    """A tool definition in the shape of the OpenAI API."""
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


GET_WEATHER = function_tool(
    "get_weather",
    "Get the current weather of a city",
    {"city": {"type": "string", "description": "The name of the city"}},
    ["city"],
)
GET_TIME = function_tool(
    "get_time",
    "Get the current time in a city",
    {"city": {"type": "string", "description": "The name of the city"}},
    ["city"],
)

_TABLE = table("tools")
ASKS: dict[str, dict[str, list[str]]] = _TABLE["asks"]
_NO_PLACE: dict[str, dict[str, list[str]]] = _TABLE["no_place"]
_CONDITIONS: dict[str, list[str]] = _TABLE["conditions"]
_DESCRIPTIONS: dict[str, list[str]] = _TABLE["descriptions"]
_OTHER_NAMES: dict[str, list[str]] = _TABLE["other_names"]
_EXTRA_TOOLS = [(name, description, argument) for name, (description, argument) in _TABLE["extra"].items()]


@dataclass(frozen=True)
class Toolbox:
    """The tools of one conversation: their definitions, and name and argument of those the model may call."""

    definitions: tuple[Json, ...] = ()
    callable: tuple[tuple[str, str, str], ...] = ()

    def find(self, kind: str) -> tuple[str, str] | None:
        return next(((name, argument) for k, name, argument in self.callable if k == kind), None)


NO_TOOLS = Toolbox()


def _variant(rng: random.Random, kind: str) -> tuple[Json, str, str]:
    name, argument = f"get_{kind}", "city"
    if rng.random() < 0.15:
        name = rng.choice(_OTHER_NAMES[kind])
        argument = rng.choice(("city", "location", "place"))
    what = {"type": "string"}
    if rng.random() < 0.6:
        what["description"] = rng.choice(
            ("The name of the city", "City name", "The city", "Name of the city, e.g. Paris", "City")
        )
    properties: Json = {argument: what}
    if kind == "weather" and rng.random() < 0.15:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    tool = function_tool(name, rng.choice(_DESCRIPTIONS[kind]), properties, [argument])
    roll = rng.random()
    if roll < 0.08:
        del tool["function"]["parameters"]["required"]
    elif roll < 0.14:
        del tool["function"]["description"]
    elif roll < 0.2:
        tool["function"]["strict"] = True
    elif roll < 0.26:
        tool["function"]["parameters"]["additionalProperties"] = False
    return tool, name, argument


def random_toolbox(rng: random.Random) -> Toolbox:
    """One or both known tools among none to three others, in any order; rarely only the others."""
    both = ("weather", "time")
    choices: tuple[tuple[str, ...], ...] = (("weather",), ("time",), both, both, both)
    kinds = rng.choice(choices)
    if rng.random() < 0.06:
        kinds = ()
    entries: list[tuple[Json, tuple[str, str, str] | None]] = []
    for kind in kinds:
        if rng.random() < 0.45:
            entries.append(({"weather": GET_WEATHER, "time": GET_TIME}[kind], (kind, f"get_{kind}", "city")))
        else:
            tool, name, argument = _variant(rng, kind)
            entries.append((tool, (kind, name, argument)))
    for name, description, argument in rng.sample(
        _EXTRA_TOOLS, rng.choice((0, 0, 0, 1, 1, 2, 3)) or (0 if kinds else 1)
    ):
        entries.append((function_tool(name, description, {argument: {"type": "string"}}, [argument]), None))
    rng.shuffle(entries)
    return Toolbox(tuple(tool for tool, _ in entries), tuple(entry for _, entry in entries if entry))


def _fill_city(template: str, city: str, rng: random.Random, lang: str) -> str:
    text = roughen(template, rng, lang, slips=False)
    if lang == "pt" and rng.random() < 0.15:
        text = text.replace("em {c}", rng.choice(("no {c}", "na {c}")))
    return text.replace("{c}", city)


def asked(rng: random.Random, lang: str, toolbox: Toolbox) -> Exchange:
    """A question about weather or time: a call and its answer, or the admission that there is no tool."""
    kind = rng.choice(("weather", "time"))
    city = random_city(rng)
    assert city not in HELD_OUT_CITIES
    if rng.random() < 0.12:
        city = city.lower()
    tool = toolbox.find(kind)
    if tool is None or rng.random() < 0.04:
        if tool is None and rng.random() < 0.75:
            question = _fill_city(rng.choice(ASKS[kind][lang]), city, rng, lang)
        else:
            question = roughen(rng.choice(_NO_PLACE[kind][lang]), rng, lang, slips=False)
        answer = NO_TOOL[lang, kind] if tool is None else WHICH_CITY[lang]
        return turn(question, answer)
    question = _fill_city(rng.choice(ASKS[kind][lang]), city, rng, lang)
    name, argument = tool
    exchange = turn(question, tool_call_text(name, {argument: city}))
    if rng.random() < 0.85:
        content, sentence = (
            weather_answer(rng, lang, city) if kind == "weather" else time_answer(rng, lang, city)
        )
        exchange += [{"role": "tool", "content": content}, {"role": "assistant", "content": sentence}]
    return exchange


WHICH_CITY = {
    "en": "Which city do you mean?",
    "es": "¿De qué ciudad hablas?",
    "pt": "De que cidade você fala?",
}
TOOL_ERROR = {
    "en": "The tool returned an error: {e}.",
    "es": "La herramienta devolvió un error: {e}.",
    "pt": "A ferramenta devolveu um erro: {e}.",
}


def _dumped(pairs: list[tuple[str, object]], rng: random.Random, *, shuffle: bool = True) -> str:
    if shuffle and rng.random() < 0.5:
        rng.shuffle(pairs)
    style = rng.random()
    if style < 0.65:
        return json.dumps(dict(pairs), ensure_ascii=False)
    if style < 0.9:
        return json.dumps(dict(pairs), ensure_ascii=False, separators=(",", ":"))
    return json.dumps(dict(pairs), ensure_ascii=False, indent=2)


def _error(rng: random.Random, lang: str) -> tuple[str, str]:
    reason = rng.choice(
        ("city not found", "timeout", "unknown city", "service unavailable", "not found", invented_word(rng))
    )
    return json.dumps({"error": reason}), TOOL_ERROR[lang].format(e=reason)


def weather_sentence(lang: str, city: str, degrees: str, condition: str) -> str:
    """The sentence for a weather answer; condition is already in the language, either part may be empty."""
    if lang == "en":
        return f"It is {' and '.join(part for part in (degrees, condition) if part)} in {city}."
    place, verb, sky = {
        "es": (f"En {city}", "hace", "el tiempo está"),
        "pt": (f"Em {city}", "faz", "o tempo está"),
    }[lang]
    parts = [f"{verb} {degrees}"] if degrees else []
    parts += [f"{sky} {condition}"] if condition else []
    return f"{place} {(' y ' if lang == 'es' else ' e ').join(parts)}."


def translated(condition: str, lang: str) -> str:
    spanish, portuguese = _CONDITIONS.get(condition, (condition, condition))
    return {"en": condition, "es": spanish, "pt": portuguese}[lang]


def weather_answer(rng: random.Random, lang: str, city: str) -> tuple[str, str]:
    """What a weather tool may answer, and the sentence the model makes of it."""
    if rng.random() < 0.05:
        return _error(rng, lang)
    degrees = rng.randint(-15, 42)
    written, unit = str(degrees), "°C"
    if rng.random() < 0.12:
        written += f".{rng.randint(1, 9)}"
    if rng.random() < 0.12:
        written, unit = str(rng.randint(10, 110)), "°F"
    number: object = float(written) if "." in written else int(written)
    pairs: list[tuple[str, object]] = [("city", city)] if rng.random() < 0.9 else []
    shown = f"{written} {unit}"
    if unit == "°F":
        options: list[list[tuple[str, object]]] = [
            [("temperature_f", number)],
            [("temperature", number), ("unit", "fahrenheit")],
            [("temp_f", number)],
        ]
    else:
        options = [[("temperature_c", number)]] * 3 + [
            [("temperature", number)],
            [("temp_c", number)],
            [("temp", number)],
            [("temperature", f"{written}°C")],
            [("temperature", f"{written} °C")],
            [("temperature", number), ("unit", "celsius")],
        ]
    english = rng.choice(list(_CONDITIONS))
    if rng.random() < 0.12:
        english = invented_word(rng)
    said = translated(english, lang)
    source = said if rng.random() < 0.2 else english
    condition_key = rng.choice(
        ("condition", "condition", "condition", "conditions", "weather", "description", "sky")
    )
    roll = rng.random()
    if roll < 0.08:
        shown = ""
        pairs.append((condition_key, source))
    elif roll < 0.16:
        said = ""
        pairs += rng.choice(options)
    else:
        pairs += [*rng.choice(options), (condition_key, source)]
    if rng.random() < 0.12:
        pairs.append(rng.choice((("humidity", rng.randint(10, 99)), ("wind_kmh", rng.randint(0, 60)))))
    return _dumped(pairs, rng), weather_sentence(lang, city, shown, said)


def time_sentence(lang: str, city: str, time: str) -> str:
    one = time.startswith(("01:", "1:"))
    if lang == "en":
        return f"It is {time} in {city}."
    if lang == "es":
        return f"En {city} {'es la' if one else 'son las'} {time}."
    return f"Em {city} {'é' if one else 'são'} {time}."


def time_answer(rng: random.Random, lang: str, city: str) -> tuple[str, str]:
    """What a clock tool may answer, and the sentence the model makes of it."""
    if rng.random() < 0.05:
        return _error(rng, lang)
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    time = f"{hour:02d}:{minute:02d}"
    if rng.random() < 0.12:
        time = f"{hour % 12 or 12}:{minute:02d} {'AM' if hour < 12 else 'PM'}"
    pairs: list[tuple[str, object]] = [("city", city)] if rng.random() < 0.9 else []
    key = rng.choice(("time", "time", "time", "local_time", "current_time"))
    value = time
    if time[-1] != "M" and rng.random() < 0.1:
        value = f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}{rng.choice('T ')}{time}"
    pairs.append((key, value))
    if rng.random() < 0.2:
        zone = rng.choice(("UTC", "America/Lima", "Europe/Madrid", "CET", "GMT-3", "Asia/Tokyo"))
        pairs.append((rng.choice(("timezone", "tz")), zone))
    return _dumped(pairs, rng), time_sentence(lang, city, time)
