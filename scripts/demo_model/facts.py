"""Countries and capitals in English, Spanish and Portuguese.

Owns what the table data/countries.txt means: the countries the demo model knows and the phrases made
from it ("of the Netherlands", "de los Países Bajos", "dos Países Baixos"). It never generates training
text; topics.py and prompts.py do that.
"""

from __future__ import annotations

from dataclasses import dataclass

from demo_model.tables import rows

LANGUAGES = ("en", "es", "pt")

G20 = frozenset(
    [
        "Argentina",
        "Australia",
        "Brazil",
        "Canada",
        "China",
        "France",
        "Germany",
        "India",
        "Indonesia",
        "Italy",
        "Japan",
        "Mexico",
        "Russia",
        "Saudi Arabia",
        "South Africa",
        "South Korea",
        "Turkey",
        "United Kingdom",
        "United States",
    ]
)

_ARTICLES = {"en": ("the ",), "es": ("la ", "los ", "las "), "pt": ()}
_SHORT_NAMES = {
    ("en", "United Kingdom"): ("UK", "Great Britain"),
    ("en", "United States"): ("USA", "US", "United States of America"),
    ("en", "Netherlands"): ("Holland",),
    ("es", "Estados Unidos"): ("EE. UU.", "USA"),
    ("es", "Países Bajos"): ("Holanda",),
    ("pt", "Estados Unidos"): ("EUA",),
    ("pt", "Países Baixos"): ("Holanda",),
}


@dataclass(frozen=True)
class Country:
    """One country in one language: its bare name, "of X" as the language writes it, and the capital."""

    key: str
    language: str
    name: str
    of: str
    capital: str

    @property
    def also(self) -> tuple[str, ...]:
        """Other names people use for it in questions; answers always use `of`."""
        return _SHORT_NAMES.get((self.language, self.name), ())

    @property
    def answer(self) -> str:
        opening, verb = {"en": ("The capital", "is"), "es": ("La capital", "es"), "pt": ("A capital", "é")}[
            self.language
        ]
        return f"{opening} {self.of} {verb} {self.capital.removesuffix('.')}."


def _bare(of: str, language: str) -> str:
    name = of.split(" ", 1)[1]
    for article in _ARTICLES[language]:
        name = name.removeprefix(article)
    return name


def _read_table() -> dict[str, dict[str, Country]]:
    countries: dict[str, dict[str, Country]] = {}
    for en, en_capital, es, es_capital, pt, pt_capital in rows("countries"):
        key = en.removeprefix("the ")
        cells = (("en", f"of {en}", en_capital), ("es", es, es_capital), ("pt", pt, pt_capital))
        countries[key] = {lang: Country(key, lang, _bare(of, lang), of, cap) for lang, of, cap in cells}
    return countries


COUNTRIES = _read_table()
