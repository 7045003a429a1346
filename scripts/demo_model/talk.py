"""Small talk, who the model is, and how this runtime is used, in three languages.

Owns the fixed answers and the reading of data/talk_*.toml (commands and paths named there must stay
true). It never adds noise or slots; topics.py turns the tables into training exchanges and prompts.py
asks from them.
"""

from __future__ import annotations

from demo_model.facts import LANGUAGES
from demo_model.tables import table

Intent = tuple[str, str, tuple[str, ...]]


def _read(lang: str) -> tuple[Intent, ...]:
    intents = table(f"talk_{lang}").items()
    return tuple((name, intent["answer"], tuple(intent["questions"])) for name, intent in intents)


INTENTS: dict[str, tuple[Intent, ...]] = {lang: _read(lang) for lang in LANGUAGES}
ANSWERS: dict[str, dict[str, str]] = {
    lang: {name: answer for name, answer, _ in intents} for lang, intents in INTENTS.items()
}
# The intents about using this runtime; all others are small talk and identity.
RUNTIME = frozenset(
    ["nexa", "start", "own", "chat", "post", "models", "health", "client", "tests", "port", "format"]
)

UNKNOWN = {
    "en": "I am only a small demo model; I do not know that.",
    "es": "Solo soy un pequeño modelo de demostración; no sé eso.",
    "pt": "Sou apenas um pequeno modelo de demonstração; não sei isso.",
}
ONLY_SMALL_SUMS = {
    "en": "I can only add two numbers of one or two digits.",
    "es": "Solo puedo sumar dos números de una o dos cifras.",
    "pt": "Só posso somar dois números de um ou dois algarismos.",
}
NO_TOOL = {
    ("en", "weather"): "I have no tool to check the weather.",
    ("en", "time"): "I have no tool to check the time.",
    ("es", "weather"): "No tengo ninguna herramienta para consultar el clima.",
    ("es", "time"): "No tengo ninguna herramienta para consultar la hora.",
    ("pt", "weather"): "Não tenho nenhuma ferramenta para consultar o tempo.",
    ("pt", "time"): "Não tenho nenhuma ferramenta para consultar a hora.",
}
