"""What a chat may tell the model's template: ``chat_template_kwargs`` and ``reasoning_effort``.

Owns which variables a client may set, and to what. It never sees a template; ``chat`` calls it.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic.config import JsonDict

from nexa_runtime.errors import InvalidRequestError

MAX_TEXT_LENGTH = 200
ALLOWED = (
    "enable_thinking", "thinking", "thinking_mode", "thinking_budget", "reasoning_effort",
    "preserve_thinking", "clear_thinking", "keep_past_thinking", "date_string",
)  # fmt: skip
"""Variables that well-known templates read and that say nothing of roles, tools or control tokens."""

OPTIONS_SCHEMA: JsonDict = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                name: {"type": ["string", "boolean", "number", "null"], "maxLength": MAX_TEXT_LENGTH}
                for name in ALLOWED
            },
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
"""What ``read_template_options`` takes, as JSON Schema."""

_FIELD = "chat_template_kwargs"

Scalar = str | bool | int | float


def read_template_options(named: Mapping[str, Any] | None, effort: str | None) -> dict[str, Scalar]:
    """The variables, those of ``chat_template_kwargs`` before what follows from ``reasoning_effort``.

    Raises ``InvalidRequestError``.
    """
    options: dict[str, Scalar] = {}
    if effort is not None:
        # Families have two names for the same switch.
        is_thinking = effort != "none"
        options = {"reasoning_effort": effort, "enable_thinking": is_thinking, "thinking": is_thinking}
    for name, value in (named or {}).items():
        if name not in ALLOWED:
            message = f"{_FIELD}: may have {', '.join(ALLOWED)}, and not {name[:50]!r}."
            raise InvalidRequestError(message, param=_FIELD)
        if value is None:
            continue
        is_sane = isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
        if not (is_sane or (isinstance(value, str) and len(value) <= MAX_TEXT_LENGTH)):
            reason = f"must be true, false, a number, or a text of at most {MAX_TEXT_LENGTH} characters"
            raise InvalidRequestError(f"{_FIELD}.{name}: {reason}.", param=f"{_FIELD}.{name}")
        options[name] = value
    return options
