"""Parts of grammars that dialects share.

Owns the rules for text in which calls may come up, and those for calls by name. It knows no family.
"""

import re
from collections.abc import Sequence

from nexa_runtime.chat.dialects.base import Dialect, lark_json, lark_literal
from nexa_runtime.chat.messages import Tool

TEXT = "TEXT: /(.|\\n)*/"
"""Any text without special tokens."""


def free_text(dialect: Dialect, trigger: str, *, is_parallel: bool, tags: Sequence[str] = ()) -> str:
    """The start of a grammar: any text, but behind every ``trigger`` comes what the rule ``rest`` says.

    ``tags``: special tokens that may stand in the text besides those of the reasoning.
    """
    many = "*" if is_parallel else "?"
    if dialect.reasoning:
        tags = (dialect.reasoning.opening, dialect.reasoning.closing, *tags)
    tokens = " | ".join(dialect.lark(tag) for tag in tags if tag in dialect.special_texts)
    # A token that is not special to the grammar is the same as its letters: these are no text either.
    lines = [f"PLAIN: TEXT & ~/(.|\\n)*{lark_regex(trigger)}(.|\\n)*/", TEXT]
    if trigger in dialect.special_texts:
        special = f"(({tokens}) PLAIN)*" if tokens else ""
        start = [f"start: (free {dialect.lark(trigger)} rest){many} free", f"free: PLAIN {special}"]
    else:
        special = f"(PLAIN ({tokens}))*" if tokens else ""
        start = [
            f"start: ({special} head rest){many} {special} PLAIN",
            f"head[lazy]: TEXT {lark_literal(trigger)}",
        ]
    return "\n".join([*start, *lines])


def rules_of_calls(
    dialect: Dialect, tools: Sequence[Tool], before_name: str, before_arguments: str, after_arguments: str
) -> str:
    """The rule ``call``: one of the tools, its name between the texts given, with arguments by its schema."""
    lines = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        head = dialect.lark(before_name + tool.name + before_arguments)
        lines.append(f"call_{index}: {head} arguments_{index} {dialect.lark(after_arguments)}")
        lines.append(f"arguments_{index}: {lark_json(tool.parameters)}")
    return "\n".join(lines)


def lark_regex(text: str) -> str:
    """A regular expression of a Lark grammar for this text."""
    return re.sub(r"([][\\.^$|?*+(){}/])", r"\\\1", text).replace("\n", "\\n")
