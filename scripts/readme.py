"""What is written into the README by code: where it stands, and what must not break a table.

Such a part stands between two marks, which name the script that writes it. ``scripts/*_table`` call it; a
test compares what they write with what is there.
"""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

_SPANS = re.compile(
    r"`[^`]*`"  # as it is
    r"|\b(?:https?|postgresql)://[^\s,]*[^\s,;.]"
    r"|\b(?:NEXA|VAULT|TENANT)_[A-Z_]+\b|\bX-[A-Z][A-Za-z-]+|\{\{tenant_id\}\}"
    r"|(?<![\w/:])/[a-z0-9/_]+|(?<![\w-])--[a-z-]+|\bnexa-runtime [a-z]+|\bmodels\.yaml"
)


def replaced(readme: str, begin: str, rows: str, end: str) -> str:
    """The README with these rows between two marks."""
    before, rest = readme.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{rows}{end}{after}"


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |")


def as_markdown(text: str) -> str:
    """A text for the terminal with its names, paths and addresses as code."""
    return _SPANS.sub(lambda match: f"`{match[0].strip('`')}`", text)
