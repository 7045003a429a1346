"""Reading of the text tables in data/.

Owns the loading of those files and nothing else: what the tables mean is up to the module that asks.
Training and evaluation both read through here.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data"


@cache
def table(name: str) -> dict[str, Any]:
    """The parsed TOML file data/NAME.toml."""
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def rows(name: str) -> list[list[str]]:
    """The cells of data/NAME.txt, one row per line, cells between bars; comment lines are left out."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if line and not line.startswith("#")]


def by_language(name: str, section: str) -> dict[str, list[str]]:
    """A section that has one list of texts per language."""
    found: dict[str, list[str]] = table(name)[section]
    return found
