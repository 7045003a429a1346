"""What a client may ask an answer to look like, before anybody has compiled it.

``server/protocol`` makes it, ``constraint`` compiles it.
"""

from dataclasses import dataclass
from enum import Enum


class GrammarKind(Enum):
    """What ``GrammarSource.text`` is: a JSON schema, nothing (any JSON object), a regular expression, a JSON
    list of texts, a grammar in Lark or GBNF, or a dialect's own in Lark.
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
    """

    kind: GrammarKind
    text: str
    param: str
    is_strict: bool = False
