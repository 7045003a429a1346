"""A catalog's YAML as entries that know their lines.

Owns the outer form of the file, ``models: [{…}, …]``, and where in it something is written. It never judges a
field. ``catalog`` alone reads files here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yaml.nodes import MappingNode, Node, SequenceNode

from nexa_runtime.strict_yaml import ShapeError, document, read_file

WHAT = "catalog"
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
    entries = []
    with document(read_file(path, WHAT), path, WHAT) as (loader, root):
        for node in _entry_nodes(root):
            values: dict[str, object] = loader.construct_object(node, deep=True)
            entries.append(Entry(values, node))
    return entries


def _entry_nodes(root: Node | None) -> Iterator[MappingNode]:
    models = _inner(root, _ROOT)
    if not isinstance(root, MappingNode) or len(root.value) != 1 or not isinstance(models, SequenceNode):
        raise ShapeError('must hold one list, "models", and nothing else', root)
    for node in models.value:
        if not isinstance(node, MappingNode):
            raise ShapeError("has a model that is not a mapping of fields", node)
        yield node


def _inner(node: Node | None, part: str | int) -> Node | None:
    """The value under a key, or the item of that number."""
    if isinstance(node, MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        item: Node = node.value[part]
        return item
    return None
