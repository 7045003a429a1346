"""What commands say: one result on stdout for a person, a program or a pipe, and talk on stderr.

Owns tables, the form of numbers, JSON, and progress bars. It never decides what is shown or computes it.
``cli.models`` talks through it, ``cli.entry`` reports errors with it.

Deliberate: tables are plain text of any width, so that a pipe gets every row whole, and ``rich`` is imported
only where a bar is drawn. What comes from files and hubs is shown with its control characters escaped.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID

Document = Mapping[str, object]

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
_COUNT_UNITS = ("", "K", "M", "B", "T")
_AGES = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


@dataclass(frozen=True, slots=True)
class Output:
    """How a command speaks. ``is_json``: one JSON document on stdout, no talk. ``is_quiet``: names alone."""

    is_json: bool = False
    is_quiet: bool = False

    def result(self, document: Document, text: str, names: Sequence[str] = ()) -> None:
        """What the command was asked for, on stdout: ``text`` for a person, ``names`` when quiet."""
        if self.is_json:
            text = json_text(document)
        elif self.is_quiet:
            text = "\n".join(clean(name) for name in names)
        if text:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def say(self, sentence: str) -> None:
        """A line of talk on stderr, for a person."""
        if not (self.is_json or self.is_quiet):
            sys.stderr.write(f"{clean(sentence)}\n")
            sys.stderr.flush()

    @contextmanager
    def bars(self) -> Iterator["Bars"]:
        """Progress on stderr: bars in a terminal, nothing of them in a pipe."""
        if self.is_quiet or not sys.stderr.isatty():
            yield _NoBars(self)
            return
        bars = _TerminalBars()
        with bars.progress:
            yield bars


class Bars(Protocol):
    """Progress of files, each known by its name."""

    def update(self, name: str, done: int, total: int) -> None:
        """So much of ``total`` bytes is there; a new name is a new bar."""

    def say(self, sentence: str) -> None:
        """A line of talk above the bars."""


class _NoBars:
    def __init__(self, output: Output) -> None:
        self._output = output

    def update(self, name: str, done: int, total: int) -> None:
        pass

    def say(self, sentence: str) -> None:
        self._output.say(sentence)


class _TerminalBars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            # The speed counts from here: what an earlier run brought was not transferred now.
            self._tasks[name] = self.progress.add_task(clean(name), total=total or None, completed=done)
        self.progress.update(self._tasks[name], completed=done, total=total or None)

    def say(self, sentence: str) -> None:
        self.progress.console.print(clean(sentence), markup=False)


def json_text(document: Document) -> str:
    """JSON in ASCII, so that no terminal or locale stumbles over it."""
    return json.dumps(document, indent=2)


def error_document(code: str, message: str, exit_code: int) -> Document:
    """What ``--json`` says instead of a result."""
    return {"error": {"code": code, "message": message, "exit_code": exit_code}}


def clean(text: str) -> str:
    """``text`` with whatever does not print, or would steer a terminal, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows in columns; ``right``: the columns of numbers."""
    cells = [list(headers), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(headers))]
    lines = (
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {clean(value)}".rstrip() for name, value in pairs)


def format_bytes(number: int) -> str:
    """Like 4.37 GB, in powers of a thousand."""
    return _scaled(number, _BYTE_UNITS)


def format_count(number: int) -> str:
    """Like 7.62 B, for parameters."""
    return _scaled(number, _COUNT_UNITS)


def format_age(moment: str, now: datetime | None = None) -> str:
    """``3 days ago`` for a moment in ISO 8601; the text itself where it is none."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    age_s = int(((now or datetime.now(UTC)) - then).total_seconds())
    for name, length in _AGES:
        if age_s >= length:
            number = age_s // length
            return f"{number} {name}{'s' * (number != 1)} ago"
    return "just now"


def _scaled(number: int, units: Sequence[str]) -> str:
    value, at = float(number), 0
    while value >= 999.5 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    digits = 0 if at == 0 or value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:.{digits}f} {units[at]}".rstrip()
