"""The README cannot lie: what there is has its row in it, and each row is something that there is.

A kind of things (settings, commands, error codes …) is documented in one column of the tables of one
section; a mention anywhere else does not count. That the check bites is shown for every single thing: without
it in its column, it is missed.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import nexa_runtime
from nexa_runtime import errors, exit_codes
from nexa_runtime.config import SLICES, env_names, file_names
from nexa_runtime.telemetry.metrics.aliases import ALIASES
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES
from nexa_runtime.telemetry.metrics.labels import MAX_TENANTS
from nexa_runtime.tenancy.tenant import LIMIT_KEYS
from scripts import api_table, cli_table, settings_table

PACKAGE = Path(nexa_runtime.__file__).parent
ROOT = PACKAGE.parent
README = (ROOT / "README.md").read_text()
DEPLOY = (ROOT / "scripts" / "deploy" / "README.md").read_text()
COMPOSE = (ROOT / "scripts" / "deploy" / "docker-compose.nexa.yml").read_text()

HIDDEN_ERRORS = (
    errors.ConfigError, errors.ModelFileError, errors.ClientError, errors.SourceUnavailableError,
    errors.UsageDatabaseError,
)  # fmt: skip
"""Never on the wire: one sentence in the terminal or in the log."""


@dataclass(frozen=True)
class Kind:
    """What there is of one kind, and the column of the README that documents it.

    ``heading``: of the section. ``head``: how the tables begin. ``rows``: how their rows that count begin.
    ``cell``: what an entry looks like in its column.
    """

    name: str
    entries: frozenset[str]
    heading: str
    head: str
    column: int = 1
    cell: re.Pattern[str] = re.compile(r"`([^`]+)`")
    rows: tuple[str, ...] = ("| ",)

    def documented(self, text: str) -> set[str]:
        """The entries that a README has."""
        return {name for row in self._rows(text) for name in self.cell.findall(row.split("|")[self.column])}

    def without(self, text: str, entry: str) -> str:
        """A README where the entry is gone from its column, and stands wherever else it stood."""
        for row in self._rows(text):
            cells = row.split("|")
            cells[self.column] = self.cell.sub(
                lambda match: "" if match[1] == entry else match[0], cells[self.column]
            )
            text = text.replace(row, "|".join(cells))
        return text

    def _rows(self, text: str) -> Iterator[str]:
        for block in re.findall(r"(?:^\|.*\n)+", section(text, self.heading), re.M):
            head, _, *rows = block.splitlines()
            if head.startswith(self.head):
                yield from (row for row in rows if row.startswith(self.rows))


def section(text: str, heading: str) -> str:
    """What stands under a heading, smaller headings too."""
    marks = heading.partition(" ")[0]
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"the README has no {heading}"
    return re.split(rf"^#{{2,{len(marks)}}} ", rest, maxsplit=1, flags=re.M)[0]


def subclasses(cls: type[errors.NexaError]) -> Iterator[type[errors.NexaError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


def settings() -> frozenset[str]:
    return frozenset(
        name for cls in SLICES for field in cls.model_fields.values() for name in env_names(field)
    )


def error_codes() -> frozenset[str]:
    codes = {cls.code for cls in subclasses(errors.NexaError)} - {cls.code for cls in HIDDEN_ERRORS}
    return frozenset(codes | {"method_not_allowed"})  # of Starlette, not of the tree


def endpoints() -> frozenset[str]:
    routes = re.findall(r'Route\("([^"]+)"', (PACKAGE / "server" / "app.py").read_text())
    return frozenset(route.replace("{name:path}", "{id}") for route in routes)


def log_events() -> frozenset[str]:
    """What the source gives to a logger as a line's event."""
    call = re.compile(r'\b_?log(?:\.[a-z]+)?\(\s*(?:[a-z.]+, |"warning", )?"(\w+)"')
    return frozenset(name for path in PACKAGE.rglob("*.py") for name in call.findall(path.read_text()))


def kinds() -> Iterator[Kind]:
    yield Kind("settings", settings(), "## Settings", "| name ")
    yield Kind("keys of a tenant's secret", frozenset(LIMIT_KEYS), "## Tenants", "| secret key ")
    commands = {name.removeprefix("nexa-runtime "): one for name, one in cli_table.commands()}
    command = re.compile(r"`nexa-runtime ([a-z]+(?: [a-z]+)?)")
    yield Kind("commands", frozenset(commands), "## Commands", "| command ", cell=command)
    for name, one in commands.items():
        flags = frozenset(flag.opts[0] for flag in cli_table.flags(one))
        rows = (f"| `nexa-runtime {name}`", f"| `nexa-runtime {name} ")
        cell = re.compile(r"`(--[a-z-]+)`")
        yield Kind(f"flags of {name}", flags, "## Commands", "| command ", 3, cell, rows)
    yield Kind("error codes", error_codes(), "### Errors", "| status ", 2)
    codes = frozenset(str(code) for name, code in vars(exit_codes).items() if name.isupper())
    yield Kind("exit codes", codes, "### Exit codes", "| exit code ", cell=re.compile(r"(\d+)"))
    metrics = frozenset(family.name for family in (*FAMILIES, *(alias.family for alias in ALIASES)))
    yield Kind("metrics", metrics, "### Metrics", "| metric ")
    path = re.compile(r"`(?:[A-Z]+ )?(/[^`]*)`")
    yield Kind("endpoints", endpoints(), "### Endpoints", "| endpoint ", cell=path)
    yield Kind("events of the log", log_events(), "### Logs", "| event ")


KINDS = tuple(kinds())
by_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


@by_kind
def test_everything_is_documented_and_what_is_documented_exists(kind: Kind) -> None:
    assert kind.documented(README) == kind.entries


@by_kind
def test_without_any_one_of_them_the_readme_is_not_complete(kind: Kind) -> None:
    for entry in kind.entries:
        assert kind.documented(kind.without(README, entry)) == kind.entries - {entry}


def test_there_is_something_of_each_kind() -> None:
    assert [kind.name for kind in KINDS if not kind.entries] == ["flags of tenants list"]
    assert {kind.name: len(kind.entries) for kind in KINDS}["events of the log"] > 80


def test_names_in_the_text_are_names_of_something() -> None:
    files = {name for cls in SLICES for name in file_names(cls).values()}
    known = settings() | files | set(LIMIT_KEYS)
    assert set(re.findall(r"`(NEXA_[A-Z_0-9]+)`", README)) <= known
    in_compose = set(re.findall(r"\$\{(NEXA_[A-Z_]+)", COMPOSE))
    assert set(re.findall(r"`(NEXA_[A-Z_0-9]+)", DEPLOY)) <= known | in_compose
    names = {family.name for family in (*FAMILIES, *(alias.family for alias in ALIASES))}
    assert set(re.findall(r"`((?:nexa_|llamacpp:|vllm:)[a-z0-9_:]+)`", README)) <= names | {"nexa_runtime"}
    assert f"first {MAX_TENANTS} tenants" in README


@pytest.mark.parametrize("folder", [".", "scripts/deploy"])
def test_links_lead_somewhere(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / folder / path) if path else ROOT / folder / "README.md"
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("script", [api_table, settings_table, cli_table])
def test_what_is_made_of_code_is_up_to_date(script: ModuleType) -> None:
    assert script.written(README) == README, f"{script.__name__.replace('.', '/')} writes it anew"


def test_the_top_level_is_what_was_agreed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    top = {line.split("/")[0] for line in files.splitlines()}
    agreed = {
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Dockerfile.cpu", "Dockerfile.cuda",
        "models.yaml", "nexa_runtime", "tests", "scripts", ".ci", ".gitignore", ".dockerignore",
    }  # fmt: skip
    assert top <= agreed
