"""The owner's YAML files, read so that nothing in them is misunderstood in silence.

Owns the cap on a file's size, the loader, and the one sentence for every way in which a file is not what it
should be: it names the file and the line, never what is written there. It knows nothing of a file's fields.
``tenancy/file_source``, ``store/catalog_file`` and ``serving/public_prefixes`` read files here.

Deliberate oddities:

1. Keys are kept as they are written: YAML would make the tenant ``007`` a 7 and ``no`` a false. A key that is
   there twice is refused, where YAML takes the last one.
2. The loader in Python is seven times slower than libyaml's, which dies of deep nesting and the process with
   it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from nexa_runtime.errors import ConfigError

MAX_FILE_BYTES = 10_000_000


class ShapeError(yaml.MarkedYAMLError):
    """Good YAML of the wrong form. ``problem`` ends a sentence that begins with the file."""

    def __init__(self, problem: str, node: Node | None = None) -> None:
        super().__init__(problem=problem, problem_mark=None if node is None else node.start_mark)


class StrictLoader(yaml.SafeLoader):
    """Refuses keys that are there twice or are no plain words; the others stay texts."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: MappingNode) -> None:
        # Merging (<<) adds keys that may be there already, so a mapping is looked at before its first merge.
        if id(node) not in self._checked:
            self._checked.add(id(node))
            _check_keys(node)
        super().flatten_mapping(node)

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, MappingNode):
            raise ShapeError("has a mapping that is none", node)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def read_file(path: Path, what: str) -> bytes:
    """A file's bytes. ``what`` it is, such as ``tenants file``, for the sentence. Raises ``ConfigError``."""
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"The {what} {path} is not a regular file.")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "input/output error"
        raise ConfigError(f"The {what} {path} cannot be read: {reason}.") from error
    except ValueError as error:
        raise ConfigError(f"The path of the {what} holds a NUL character.") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"The {what} {path} is larger than {MAX_FILE_BYTES} bytes.")
    return content


@contextmanager
def document(content: bytes, path: Path, what: str) -> Iterator[tuple[StrictLoader, Node | None]]:
    """A file's loader and root node, to construct values from.

    Whatever goes wrong inside becomes a ``ConfigError``, without a cause: the texts of those errors repeat
    what is in the file. Raise ``ShapeError`` for what is good YAML and yet not right.
    """
    try:
        loader = StrictLoader(content.decode("utf-8-sig"))
        try:
            yield loader, loader.get_single_node()
            return
        finally:
            loader.dispose()
    except ShapeError as error:
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
    raise ConfigError(f"The {what} {path} {message}") from None


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f" (line {mark.line + 1})"


def _check_keys(node: MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise ShapeError("has a key that is not a plain word", key)
        if key.value in seen:
            raise ShapeError("has a key twice", key)
        seen.add(key.value)
