"""What an answer must look like, on the wire: ``response_format`` and the fields that say the same otherwise.

Owns these fields, their caps, and that a request has one of them at most. It never reads a schema or compiles
a grammar; ``common`` is built on it. Sources: OpenAI's structured outputs, llama-server (``grammar``,
``json_schema``), vLLM (``guided_choice``).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.protocol.wire import WireModel, at_most, check_bytes, json_text

MAX_GRAMMAR_BYTES = 128 * 1024
MAX_CHOICES = 256


NonEmpty = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]


class JsonSchemaFormat(WireModel):
    """The schema of a ``response_format``."""

    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(WireModel):
    """OpenAI's ``response_format``; ``schema`` beside ``json_object`` as llama-server takes it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ConstraintFields(WireModel):
    """The fields of a request that say what its answer must look like."""

    response_format: ResponseFormat | None = None
    grammar: str | None = None
    regex: str | None = Field(None, min_length=1)
    guided_choice: Annotated[list[NonEmpty] | None, at_most(MAX_CHOICES), Field(min_length=1)] = None
    json_schema: dict[str, Any] | None = None

    def constraint(self) -> GrammarSource | None:
        """What is asked for, if anything is. Raises ``InvalidRequestError``."""
        found = [one for one in (self._format(), *self._others()) if one is not None]
        if len(found) > 1:
            first, second = (source.param.partition(".")[0] for source in found[:2])
            message = f"{first} and {second} cannot be combined: an answer follows one of them."
            raise InvalidRequestError(message, param=second)
        return found[0] if found else None

    def _others(self) -> list[GrammarSource | None]:
        return [
            _text(GrammarKind.GRAMMAR, self.grammar, "grammar") if self.grammar else None,
            _text(GrammarKind.REGEX, self.regex, "regex") if self.regex else None,
            self._choice(),
            None if self.json_schema is None else _schema(self.json_schema, "json_schema"),
        ]

    def _choice(self) -> GrammarSource | None:
        param = "guided_choice"
        if self.guided_choice is None:
            return None
        if not all(self.guided_choice):
            raise InvalidRequestError(f"{param}: must be texts that are not empty.", param=param)
        text = json_text(self.guided_choice, max_bytes=MAX_GRAMMAR_BYTES, param=param)
        return GrammarSource(GrammarKind.CHOICE, text, param)

    def _format(self) -> GrammarSource | None:
        param = "response_format"
        asked = self.response_format
        if asked is None:
            return None
        if asked.json_schema is not None and asked.type != "json_schema":
            param += ".json_schema"
            raise InvalidRequestError(f"{param}: needs the type json_schema.", param=param)
        if asked.schema_ is not None and asked.type != "json_object":
            param += ".schema"
            raise InvalidRequestError(f"{param}: needs the type json_object.", param=param)
        if asked.type == "text":
            return None
        if asked.type == "json_object":
            if asked.schema_ is not None:
                return _schema(asked.schema_, f"{param}.schema")
            return GrammarSource(GrammarKind.JSON_OBJECT, "", param)
        if asked.json_schema is None or asked.json_schema.schema_ is None:
            param += ".json_schema" if asked.json_schema is None else ".json_schema.schema"
            raise InvalidRequestError(f"{param}: is required.", param=param)
        is_strict = bool(asked.json_schema.strict)
        return _schema(asked.json_schema.schema_, f"{param}.json_schema.schema", is_strict=is_strict)


def _schema(schema: dict[str, Any], param: str, *, is_strict: bool = False) -> GrammarSource:
    text = json_text(schema, max_bytes=MAX_GRAMMAR_BYTES, param=param)
    return GrammarSource(GrammarKind.JSON_SCHEMA, text, param, is_strict)


def _text(kind: GrammarKind, text: str, param: str) -> GrammarSource:
    check_bytes(text.encode("utf-8", "surrogatepass"), max_bytes=MAX_GRAMMAR_BYTES, param=param)
    return GrammarSource(kind, text, param)
