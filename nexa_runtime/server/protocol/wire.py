"""What every request is made of: strict models, caps, and errors that name the field.

Owns the base of the wire types and the translation of pydantic's errors into one sentence. It knows no
endpoint; all of ``protocol`` builds on it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from nexa_runtime.chat.schema import MAX_DEPTH
from nexa_runtime.errors import InvalidRequestError

MAX_TOKEN_IDS = 2**20

_CONTAINERS = frozenset({dict, list})

_TEXTS = {
    "missing": "is required",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a text",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}
"""What pydantic says in a programmer's words; no field has a least length but one."""

RequestT = TypeVar("RequestT", bound="WireModel")


class WireModel(BaseModel):
    """Strict types, no NaN; unknown fields are kept, for ``unknown_fields`` to name."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


@dataclass(frozen=True, slots=True)
class AtMost:
    """What ``at_most`` annotates with: a check in front of all others, and what JSON Schema calls it."""

    max_items: int

    def check(self, value: object) -> object:
        """The value itself; raises ValueError when it is too long."""
        if isinstance(value, (list, dict)) and len(value) > self.max_items:
            raise ValueError(f"must have at most {self.max_items} entries")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _stop_at_first(schema)
        return core_schema.no_info_before_validator_function(self.check, schema)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        described = handler(schema)
        for branch in described.get("anyOf", [described]):
            if branch.get("type") == "array":
                branch["maxItems"] = self.max_items
            elif branch.get("type") == "object":
                branch["maxProperties"] = self.max_items
        return described


def at_most(max_items: int) -> AtMost:
    """Refuse a longer list or object before its items are looked at, and a list at its first bad item: each
    could add several errors, of which a client is told one.
    """
    return AtMost(max_items)


def only(value: str) -> JsonDict:
    """The JSON Schema of a field that may have one value or none; any other is refused by name later."""
    return {"anyOf": [{"const": value}, {"type": "null"}]}


def _stop_at_first(schema: CoreSchema) -> None:
    """Let a list, or one among several types, end at the first item that is none of its own."""
    if schema["type"] == "list":
        cast(dict[str, Any], schema)["fail_fast"] = True
    elif schema["type"] == "nullable":
        _stop_at_first(schema["schema"])
    elif schema["type"] == "union":
        for choice in schema["choices"]:
            _stop_at_first(choice[0] if isinstance(choice, tuple) else choice)


def parse(cls: type[RequestT], fields: Mapping[str, object]) -> RequestT:
    """Fields to a request. Raises ``InvalidRequestError`` that names the field at fault."""
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        param, message = _sentence(fields, error)
        raise InvalidRequestError(f"{param or 'The body'}: {message}.", param=param or None) from None


def unknown_fields(model: BaseModel, path: str = "") -> list[str]:
    """Where in a request there are fields that nobody reads, nulls aside, such as ``messages[0].mood``."""
    found = [f"{path}{name}" for name, value in (model.model_extra or {}).items() if value is not None]
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found += unknown_fields(value, f"{path}{name}.")
        elif isinstance(value, list) and any(issubclass(kind, BaseModel) for kind in set(map(type, value))):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    found += unknown_fields(item, f"{path}{name}[{index}].")
    return found


def check_texts_or_tokens(value: object, max_items: int) -> list[str | list[int]]:
    """One text, several, token ids, or several lists of these; one entry each.

    Looks at types in bulk: a body of a million wrong items costs no more than one.
    """
    shape = "must be a text, a list of texts, token ids, or a list of these"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(shape)
    if type(value[0]) is int:
        return [check_token_ids(value, shape)]
    if len(value) > max_items:
        raise ValueError(f"must have at most {max_items} entries")
    kinds = set(map(type, value))
    if kinds == {str}:
        return list(value)
    if kinds == {list}:
        return [check_token_ids(item, shape) for item in value]
    raise ValueError(shape)


TOKENS_SCHEMA: JsonDict = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31},
    "maxItems": MAX_TOKEN_IDS,
}


def texts_or_tokens_schema(max_items: int) -> JsonDict:
    """What ``check_texts_or_tokens`` takes, as JSON Schema."""
    tokens: JsonDict = {**TOKENS_SCHEMA, "minItems": 1}
    texts: JsonDict = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": max_items}
    lists: JsonDict = {"type": "array", "items": tokens, "minItems": 1, "maxItems": max_items}
    return {"anyOf": [{"type": "string"}, texts, tokens, lists]}


def check_token_ids(value: list[object], shape: str) -> list[int]:
    """At least one token id. ``shape``: what to say of a list of other things."""
    if len(value) > MAX_TOKEN_IDS:
        raise ValueError(f"must have at most {MAX_TOKEN_IDS} token ids")
    if set(map(type, value)) != {int}:
        raise ValueError(shape)
    ids = cast(list[int], value)
    if not 0 <= min(ids) <= max(ids) < 2**31:
        raise ValueError("must have token ids from 0 on")
    return ids


def json_text(value: object, *, max_bytes: int, param: str) -> str:
    """The JSON text of a part of a body. Raises ``InvalidRequestError`` for what is too large or too deep.

    Its bytes are counted first: a million numbers in a list are many to look at one by one.
    """
    too_deep = InvalidRequestError(f"{param}: must not be nested more than {MAX_DEPTH} deep.", param=param)
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        if _is_deeper(value, MAX_DEPTH):  # orjson has a limit of its own
            raise too_deep from None
        raise InvalidRequestError(f"{param}: is not JSON: {error}.", param=param) from None
    text = check_bytes(data, max_bytes=max_bytes, param=param).decode()
    if _is_deeper(value, MAX_DEPTH):
        raise too_deep
    return text


def check_bytes(data: bytes, *, max_bytes: int, param: str) -> bytes:
    """The bytes themselves. Raises ``InvalidRequestError`` when there are too many."""
    if len(data) > max_bytes:
        raise InvalidRequestError(f"{param}: must have at most {max_bytes} bytes.", param=param)
    return data


def _is_deeper(value: object, max_depth: int) -> bool:
    level = _containers([[value]])
    for _ in range(max_depth):
        if not level:
            return False
        level = _containers(one.values() if isinstance(one, dict) else one for one in level)
    return bool(level)


def _containers(level: Iterable[Collection[object]]) -> list[Collection[object]]:
    """The lists and objects among the entries of a level. Looks at types in bulk, for most have none."""
    return [
        entry
        for entries in level
        if not _CONTAINERS.isdisjoint(map(type, entries))
        for entry in entries
        if isinstance(entry, (dict, list))
    ]


def field_path(body: object, loc: Sequence[int | str], *, is_missing: bool = False) -> str:
    """A place in a body such as ``messages[0].content``; pydantic's names of union members are left out."""
    path = ""
    here = body
    for number, part in enumerate(loc):
        is_absent = is_missing and number == len(loc) - 1
        if isinstance(part, int) and isinstance(here, list) and part < len(here):
            path += f"[{part}]"
            here = here[part]
        elif isinstance(part, str) and isinstance(here, Mapping) and (part in here or is_absent):
            path += f".{part}" if path else part
            here = here.get(part)
    return path


def _sentence(body: object, error: ValidationError) -> tuple[str, str]:
    """The deepest field at fault, and what it should be; a field of several types lists them."""
    by_path: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        is_missing = item["type"] == "missing"
        path = field_path(body, item["loc"], is_missing=is_missing)
        text = _TEXTS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
        by_path.setdefault(path, []).append(text.removeprefix("Input should be "))
    path = max(by_path, key=lambda path: path.count(".") + path.count("["))
    texts = list(dict.fromkeys(by_path[path]))
    is_type = texts[0].startswith(("a ", "an ", "greater", "less", "'", "0"))
    return path, f"{'must be ' if is_type else ''}{' or '.join(texts)}"
