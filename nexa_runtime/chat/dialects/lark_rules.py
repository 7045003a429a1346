"""Grammars in llguidance's Lark: free text with calls in it, calls alone, lists of what may be left out.

Owns the rules that the dialects share. It knows no family; ``Dialect.grammar`` puts its parts together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nexa_runtime.chat.dialects.base import Dialect, UnsupportedSchemaError, lark_json, lark_literal
from nexa_runtime.chat.dialects.string_rules import ANY, regex
from nexa_runtime.chat.messages import Tool

_MAX_CHARS = 2**20
"""Of one grammar; more is refused later anyhow."""


class Rules:
    """Rules and terminals of one grammar, each under a name of its own; the same twice is one."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lines: list[str] = []
        self._num_chars = 0

    def rule(self, text: str, options: str = "") -> str:
        """The name of a rule."""
        return self._name("r", text, options)

    def terminal(self, text: str) -> str:
        """The name of a terminal: one lexeme, which is what makes it fast."""
        return self._name("T", text, "")

    def reserve(self) -> str:
        """The name of a rule that ``define`` gives a text: for those that refer to themselves."""
        name = f"n{len(self._names)}"
        self._names[name] = name
        return name

    def define(self, name: str, text: str) -> None:
        """What the rule that was reserved is."""
        self._lines.append(f"{name}: {text}")

    def grammar(self, start: str) -> str:
        """All of it."""
        return "\n".join([f"start: {start}", *self._lines, ""])

    def _name(self, kind: str, text: str, options: str) -> str:
        key = f"{kind}{options}: {text}"
        if key not in self._names:
            self._num_chars += len(key)
            if self._num_chars > _MAX_CHARS:
                raise UnsupportedSchemaError(None, "$ref", "they are too large together")
            name = f"{kind}{len(self._names)}"
            self._names[key] = name
            self._lines.append(f"{name}{options}: {text}")
        return self._names[key]


@dataclass(frozen=True, slots=True)
class Opened:
    """Calls that begin with the text ``opener``; ``rest``: a rule for what follows it."""

    opener: str
    rest: str


def forced(rules: Rules, dialect: Dialect, calls: str, separator: str, *, is_parallel: bool) -> str:
    """A grammar for calls and nothing else. ``calls``: a rule for one."""
    more = f" ({dialect.lark(separator)} {calls})*" if is_parallel else ""
    return rules.grammar(calls + more)


def free(
    rules: Rules, dialect: Dialect, calls: Sequence[Opened], *, is_parallel: bool, first: str = ""
) -> str:
    """A grammar for any text, in which what begins with one of the openers is a call.

    ``first``: a rule for calls without an opener, which may only stand at the very start.
    """
    tokens = [one for one in calls if one.opener in dialect.special_texts]
    letters = [one for one in calls if one.opener not in dialect.special_texts]
    others = [
        str(number)
        for marker, number in dialect.special_texts.items()
        if marker in dialect.markers and all(one.opener != marker for one in tokens)
    ]
    any_text = f"/{ANY}/"
    # A token that is not special to the grammar is the same as its letters: these are no text either.
    text = rules.terminal(_without(any_text, [one.opener for one in tokens]))
    heads = [(rules.rule(f"{text} {lark_literal(one.opener)}", "[lazy]"), one.rest) for one in letters]
    branches = [f"{text} {dialect.lark(one.opener)} {one.rest}" for one in tokens]
    call = rules.rule(" | ".join([*branches, *(f"{head} {rest}" for head, rest in heads)]))
    skip = f"<[{','.join(sorted(others))}]>"
    if is_parallel:
        passed = f"{text} {skip} | {call}" if others else call
        return rules.grammar(f"{first and f'{first}?'} ({passed})* {text}")
    tail = rules.terminal(_without(any_text, [one.opener for one in calls]))
    end = f"({tail} {skip})* {tail}" if others else tail
    start = f"({text} {skip})*" if others else ""
    return rules.grammar(f"{start} ({text} | {call} {end}){first and f' | {first} {end}'}")


def text_body(rules: Rules, dialect: Dialect, texts: Sequence[str], stop: str) -> str:
    """Bare text that one of the expressions ``texts`` describes, and the ``stop`` after it, which is not in
    it.
    """
    text = texts[0] if len(texts) == 1 else rules.terminal(" | ".join(map(rules.terminal, texts)))
    text = rules.terminal(_without(text, [stop.strip()]))
    letters, *rest = dialect.split(stop)
    if letters in dialect.special_texts:
        return f"{text} {dialect.lark(stop)}"
    # In one lexeme with the text, which would swallow it.
    return f"{rules.terminal(f'{text} {lark_literal(letters)}')} {dialect.lark(''.join(rest))}"


def named_calls(
    rules: Rules, dialect: Dialect, tools: Sequence[Tool], before_name: str, before_arguments: str, after: str
) -> str:
    """A rule for a call: one of the tools, its name between the texts given, with arguments by its schema."""
    calls = []
    for tool in tools:
        head = dialect.lark(before_name + tool.name + before_arguments)
        calls.append(f"{head} {rules.rule(lark_json(tool.parameters))} {dialect.lark(after)}")
    return rules.rule(" | ".join(calls))


def listed(rules: Rules, items: Sequence[tuple[str, bool]], separator: str) -> str:
    """Items in order with ``separator`` between them; each with whether it must be there."""
    rest = first = ""
    for item, is_required in reversed(items):
        after = f"{item} {rest}"
        if is_required:
            first = after
            rest = rules.rule(f"{lark_literal(separator)} {after}")
        else:
            first = rules.rule(f"{after} | {first or lark_literal('')}")
            rest = rules.rule(f"({lark_literal(separator)} {item})? {rest}")
    return first or lark_literal("")


def _without(text: str, stops: Sequence[str]) -> str:
    """A terminal for ``text`` in which none of ``stops`` is."""
    return text + "".join(f" & ~/{ANY}{regex(stop)}{ANY}/" for stop in stops)
