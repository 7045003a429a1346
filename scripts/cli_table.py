"""The README's table of commands: names, one line of help and flags, from the command line itself.

Run by ``scripts/cli_table`` after a command or a flag has come, gone or changed its words.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from nexa_runtime.cli.main import app
from scripts.readme import README, as_markdown, replaced, row

BEGIN = "<!-- scripts/cli_table writes what follows -->\n"
END = "<!-- end of the commands -->\n"

_SETTING = re.compile(r" ?\[env: .*\]$")


def commands(group: Any = None, name: str = "nexa-runtime") -> Iterator[tuple[str, Any]]:
    """Every command with all its words, groups followed."""
    root: Any = group or get_command(app)
    for command in root.commands.values():
        full = f"{name} {command.name}"
        if hasattr(command, "commands"):
            yield from commands(command, full)
        else:
            yield full, command


def flags(command: Any) -> list[Any]:
    """What may be given to a command by name."""
    return [one for one in command.params if one.param_type_name == "option" and one.name != "help"]


def tables() -> str:
    """A row for each command, then one for each flag that several commands take."""
    every = list(commands())
    count = Counter((flag.opts[0], flag.help) for _, command in every for flag in flags(command))
    shared = {key for key, times in count.items() if times > 1}
    text = row("command", "what", "flags") + "|---|---|---|\n"
    for name, command in every:
        cells = [_flag(flag, is_shared=(flag.opts[0], flag.help) in shared) for flag in flags(command)]
        usage = " ".join([name, *_needed(command)])
        text += row(f"`{usage}`", as_markdown(_one_line(command.help)), ", ".join(cells))
    text += f"\n{row('flag', 'of several commands')}|---|---|\n"
    root = [(flag.opts[0], flag.help) for flag in flags(get_command(app))]
    for option, help_text in sorted(shared) + root:
        if not _SETTING.search(help_text):
            text += row(f"`{_all_names(every, option)}`", as_markdown(help_text))
    return f"\n{text}\n"


def _flag(flag: Any, *, is_shared: bool) -> str:
    """Its name, and its meaning unless that stands elsewhere."""
    if is_shared or _SETTING.search(flag.help):
        return f"`{flag.opts[0]}`"
    return f"`{flag.opts[0]}` ({as_markdown(flag.help)})"


def _all_names(every: list[tuple[str, Any]], option: str) -> str:
    names = next((f.opts for _, one in every for f in flags(one) if f.opts[0] == option), [option])
    return "`, `".join(names)


def _needed(command: Any) -> Iterator[str]:
    """Its arguments, in brackets where it goes without, and the flags without which it does not."""
    for one in command.params:
        name = str(one.metavar or one.name.upper())
        if one.param_type_name == "argument":
            yield f"{name if one.required else f'[{name}]'}{'…' if one.nargs == -1 else ''}"
        elif one.required:
            yield f"{one.opts[0]} {name}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def written(readme: str) -> str:
    """A README with its commands as they must be."""
    return replaced(readme, BEGIN, tables(), END)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
