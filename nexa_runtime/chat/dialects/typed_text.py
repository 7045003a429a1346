"""Values that a model writes as bare text, typed by the tool's schema.

Owns how such a text becomes JSON, given the types that the value may have. It knows no schema:
``tool_schemas`` does. The parsers of the dialects that are not plain JSON use it.
"""

import json

from nexa_runtime.chat.dialects.json_scan import SPACE
from nexa_runtime.chat.dialects.tool_schemas import type_of

PYTHON_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
"""Templates write these where they mean JSON, so models do."""


def json_text(text: str, allowed: frozenset[str]) -> str:
    """The JSON text of the value that ``text`` stands for, where a value may have the types ``allowed``."""
    bare = text.strip(SPACE)
    if "string" not in allowed:
        bare = PYTHON_CONSTANTS.get(bare, bare)
    kinds = _kinds(bare)
    if kinds and ("string" not in allowed or kinds & allowed):
        return bare
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """``text`` inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def loads(text: str) -> object:
    """The value of a JSON text. Raises ``ValueError`` if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _kinds(text: str) -> frozenset[str]:
    """What the value of a JSON text is; nothing if it is no JSON."""
    try:
        value = loads(text)
    except ValueError:
        return frozenset()
    kind = type_of(value)
    return frozenset({kind, "number"}) if kind == "integer" else frozenset({kind})


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")
