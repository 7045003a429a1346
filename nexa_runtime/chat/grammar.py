"""What a client may ask an answer to look like, before anybody has compiled it.

``server/protocol`` makes it, and ``serving`` for tools; ``constraint`` compiles it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from nexa_runtime.chat.messages import Json


class GrammarKind(Enum):
    """What ``GrammarSource.text`` is: a JSON schema, nothing (any JSON object), a regular expression, a JSON
    list of texts, a grammar in Lark or GBNF, or what a dialect's grammar is made from.
    """

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    DIALECT = "dialect"


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """``param``: the field of the request that errors name. ``is_strict``: objects whose schema says nothing
    of other properties have none.

    Of a dialect's, ``text`` is never read: it names all that the grammar is made from, so that equal texts
    have equal grammars. ``build`` makes the grammar in Lark; it may take long, and is called in the thread
    that compiles. ``schemas``: those of the tools as the grammar holds them, so closed where it has them
    closed. Without ``build``, ``text`` is the grammar itself, and compiled with more care.
    """

    kind: GrammarKind
    text: str
    param: str
    is_strict: bool = False
    build: Callable[[], str] | None = field(default=None, compare=False)
    schemas: tuple[Mapping[str, Json], ...] = field(default=(), hash=False)
