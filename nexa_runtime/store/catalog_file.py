"""A catalog's YAML as entries that know their lines.

Owns the outer form of the file, ``models: [{…}, …]``, and where in it something is written. It never judges a
field. ``catalog`` alone reads files here.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from nexa_runtime.errors import ConfigError

MAX_FILE_BYTES = 10_000_000
_ROOT = "models"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as it is written."""

    values: dict[str, object]
    node: MappingNode

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return int(self.node.start_mark.line) + 1

    def line_of(self, location: Sequence[str | int]) -> int:
        """Where the field is written, or the innermost part around it that is."""
        node: Node = self.node
        for part in location:
            inner = _inner(node, part)
            if inner is None:
                break
            node = inner
        return int(node.start_mark.line) + 1


def read_entries(path: Path) -> list[Entry]:
    """The entries of a catalog in their order. Raises ``ConfigError``, which names the file and the line."""
    content = _read(path)
    with _faults_of(path):
        loader = _Loader(content.decode("utf-8-sig"))
        try:
            root = loader.get_single_node()
            return [Entry(loader.construct_entry(node), node) for node in _entry_nodes(root)]
        finally:
            loader.dispose()


def _entry_nodes(root: Node | None) -> Iterator[MappingNode]:
    models = _inner(root, _ROOT)
    if not isinstance(root, MappingNode) or len(root.value) != 1 or not isinstance(models, SequenceNode):
        raise _ShapeError('must hold one list, "models", and nothing else', root)
    for node in models.value:
        if not isinstance(node, MappingNode):
            raise _ShapeError("has a model that is not a mapping of fields", node)
        yield node


def _inner(node: Node | None, part: str | int) -> Node | None:
    """The value under a key, or the item of that number."""
    if isinstance(node, MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        item: Node = node.value[part]
        return item
    return None


def _read(path: Path) -> bytes:
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"The catalog {path} is not a regular file.")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "input/output error"
        raise ConfigError(f"The catalog {path} cannot be read: {reason}.") from error
    except ValueError as error:
        raise ConfigError("The path of the catalog holds a NUL character.") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"The catalog {path} is larger than {MAX_FILE_BYTES} bytes.")
    return content


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Every way in which a text is no catalog becomes a ``ConfigError``."""
    try:
        yield
    except _ShapeError as error:
        message = f"{error.problem}{_place(error)}."
    except yaml.MarkedYAMLError as error:
        message = f"is not valid YAML{_place(error)}."
    except UnicodeDecodeError:
        message = "is not UTF-8 text."
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError):
        # PyYAML raises whatever comes when a tag and its text do not agree, as in "!!bool maybe".
        message = "is not valid YAML."
    except RecursionError:
        message = "is nested too deeply."
    else:
        return
    raise ConfigError(f"The catalog {path} {message}") from None


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f" (line {mark.line + 1})"


class _ShapeError(yaml.MarkedYAMLError):
    """Good YAML that is no catalog; the problem ends a sentence that begins with the file."""

    def __init__(self, problem: str, node: Node | None = None) -> None:
        super().__init__(problem=problem, problem_mark=None if node is None else node.start_mark)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, where YAML silently takes the last one."""

    def construct_entry(self, node: MappingNode) -> dict[str, object]:
        entry: dict[str, object] = self.construct_object(node, deep=True)
        return entry

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, MappingNode):
            raise _ShapeError("has a mapping that is none", node)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _ShapeError("has a key that is not a plain word", key)
            if key.value in seen:
                raise _ShapeError(f"has the field {key.value[:100]} twice", key)
            seen.add(key.value)
        self.flatten_mapping(node)
        # Keys as they are written: YAML would make "no" a false.
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}
