"""What one rendering of a template may still do: steps, and characters read or made.

Owns the two budgets and the weight of a value. Both are counted, never timed, so that the limit is the same
on every machine. It knows nothing of Jinja's syntax; ``sandbox`` and ``allowed`` count with it.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.utils import Namespace

MAX_WORK = 2_000_000
"""Steps in one rendering: a turn of a loop, a look at an attribute, a filter is one, a call is ten."""
MAX_LENGTH = 10_000_000
"""Characters of one text; an element of a list counts as ``ITEM_LENGTH``."""
MAX_CHARACTERS = 50_000_000
"""Characters that all operations of one rendering together read and make."""
ITEM_LENGTH = 16

_CONTAINERS = (list, tuple, KeysView, ValuesView, ItemsView)


class TemplateBoundsError(jinja2.TemplateRuntimeError):
    """A template went beyond what it may do."""


@dataclass(slots=True)
class _Budget:
    work: int = MAX_WORK
    characters: int = MAX_CHARACTERS


_current: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def bounded() -> Iterator[None]:
    """One rendering: inside, ``TemplateBoundsError`` ends what takes more than the budgets."""
    token = _current.set(_Budget())
    try:
        yield
    finally:
        _current.reset(token)


def count(work: int = 1) -> None:
    """Take steps."""
    budget = _current.get()
    if not 0 <= work <= budget.work:
        raise TemplateBoundsError(f"it takes more than {MAX_WORK} steps")
    budget.work -= work


def charge(length: int) -> None:
    """Take the characters of one text that is read, or is to be made."""
    budget = _current.get()
    if not 0 <= length <= MAX_LENGTH:
        raise TemplateBoundsError(f"it makes a text or list longer than {MAX_LENGTH}")
    if length > budget.characters:
        raise TemplateBoundsError(f"it reads and makes more than {MAX_CHARACTERS} characters")
    budget.characters -= length


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items; each is a step."""
    for item in items:
        count()
        yield item


def weigh(value: Any) -> int:
    """Charge what comparing, hashing or showing the value goes through: all that is in it, each time."""
    weight, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            weight += len(one)
        elif isinstance(one, dict):
            weight += _room(weight, 2 * len(one))
            waiting.extend(one)
            waiting.extend(one.values())
        elif isinstance(one, _CONTAINERS):
            weight += _room(weight, len(one))
            waiting.extend(one)
        elif isinstance(one, range):
            weight += len(one)
        elif isinstance(one, Namespace):
            raise TemplateBoundsError("it uses a namespace as a value")
    charge(weight)
    return weight


def measure(value: Any) -> Any:
    """The value, charged for what copying it takes; what is in its elements does not count."""
    if isinstance(value, str):
        charge(len(value))
    elif isinstance(value, (list, tuple, dict)):
        charge(len(value) * ITEM_LENGTH)
    return value


def _room(weight: int, num_items: int) -> int:
    """The weight of so many items, refused before they are gone through."""
    added = num_items * ITEM_LENGTH
    if weight + added > MAX_LENGTH:
        charge(weight + added)
    return added
