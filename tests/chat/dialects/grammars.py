"""Grammars of dialects, tried on the bundled model's vocabulary."""

import json
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence

from jsonschema import Draft202012Validator, FormatChecker
from llguidance import LLMatcher
from llguidance.llamacpp import lltokenizer_from_vocab

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.messages import Json, Tool
from nexa_runtime.llama import Model
from tests.chat.dialects.transcripts import TOOLS, Answer, run

_SPECIAL = (1, 0)
"""Tokens of the vocabulary that stand in for markers. There are but two besides the end."""
_MAX_STEPS = 3000
_FORMATS = ("email", "ipv4", "ipv6", "uuid")
"""Those that are checked just as the standards say."""

BOUNDED: tuple[Tool, ...] = (
    Tool(
        "put",
        None,
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "code": {"type": "string", "pattern": "^[a-z]{2,4}$"},
                "mode": {"enum": ["on", "off"]},
                "count": {"type": "integer", "minimum": 0, "maximum": 99},
                "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
                "place": {
                    "type": "object",
                    "properties": {
                        "x": {"type": "integer", "minimum": 0, "maximum": 9},
                        "note": {"type": "string", "maxLength": 5},
                    },
                    "required": ["x"],
                    "additionalProperties": False,
                },
                "maybe": {"type": ["string", "null"], "maxLength": 6},
                "word": {"anyOf": [{"$ref": "#/$defs/word"}, {"type": "null"}]},
                "none": {"type": "null"},
                "is_new": {"type": "boolean"},
            },
            "required": ["code", "count", "is_new"],
            "additionalProperties": False,
            "$defs": {"word": {"type": "string", "minLength": 1, "maxLength": 4}},
        },
    ),
    Tool("get_time", None, {"type": "object", "properties": {}, "additionalProperties": False}),
)


class Grammars:
    """What the dialects' grammars let through."""

    def __init__(self, model: Model) -> None:
        self._vocab = model.vocab
        with warnings.catch_warnings():
            # It calls llama.cpp by names that have become old.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._tokenizer = lltokenizer_from_vocab(self._vocab.pointer)

    def dialects(self, kind: type[Dialect]) -> Iterable[Dialect]:
        """The dialect without tokens for its markers, and with two."""
        yield kind({})
        yield kind(dict(zip(kind.markers, _SPECIAL, strict=False)))

    def check(
        self, kind: type[Dialect], *, forced: Sequence[str], refused: Sequence[str], free: Sequence[str]
    ) -> None:
        """``forced``: answers of one call and nothing else; ``refused``: with such a call in them that is
        wrong; ``free``: any others.
        """
        for dialect in self.dialects(kind):
            for is_parallel in (False, True):
                grammar = dialect.grammar(TOOLS, is_forced=True, is_parallel=is_parallel)
                self.check_valid(grammar)
                assert [one for one in forced if not self.accepts(dialect, grammar, one)] == []
                assert [one for one in [*refused, *free] if self.accepts(dialect, grammar, one)] == []
                grammar = dialect.grammar(TOOLS, is_forced=False, is_parallel=is_parallel)
                self.check_valid(grammar)
                assert [one for one in [*forced, *free] if not self.accepts(dialect, grammar, one)] == []
                assert [one for one in refused if self.accepts(dialect, grammar, one)] == []

    def check_valid(self, grammar: str) -> None:
        """It compiles."""
        error = LLMatcher.validate_grammar(grammar, self._tokenizer)
        assert not error, f"{error}\n{grammar}"

    def accepts(self, dialect: Dialect, grammar: str, text: str) -> bool:
        """Whether ``text`` is an answer that the grammar allows."""
        matcher = LLMatcher(self._tokenizer, grammar)
        tokens = self._tokens(dialect, text)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    def check_walks(self, kind: type[Dialect], seeds: Iterable[int]) -> None:
        """Whatever the grammar forces is read as calls whose arguments are what the schemas want."""
        for dialect in self.dialects(kind):
            for is_parallel in (False, True):
                grammar = dialect.grammar(BOUNDED, is_forced=True, is_parallel=is_parallel)
                for seed in seeds:
                    text = self._walk(dialect, grammar, seed)
                    answers = self._answers(dialect, text)
                    assert all(answer.content == answer.reasoning == "" for answer in answers), text
                    assert all(is_parallel or len(answer.calls) == 1 for answer in answers), text

    def check_values(self, kind: type[Dialect], tool: Tool, seeds: Iterable[int]) -> set[str]:
        """Whatever a forced call of ``tool`` is, its schema takes the arguments. Returns their texts."""
        validator = Draft202012Validator(dict(tool.parameters), format_checker=FormatChecker(_FORMATS))
        found: set[str] = set()
        for dialect in self.dialects(kind):
            grammar = dialect.grammar([tool], is_forced=True, is_parallel=False)
            self.check_valid(grammar)
            for seed in seeds:
                text = self._walk(dialect, grammar, seed)
                for is_constrained in (False, True):
                    answer = run(dialect, [text], tools=[tool], is_constrained=is_constrained)
                    assert answer.content == "", (text, answer)
                    ((_, arguments),) = answer.calls
                    errors = [error.message for error in validator.iter_errors(json.loads(arguments))]
                    assert not errors, (text, arguments, errors)
                    found.add(arguments)
        return found

    def check_free_walks(self, kind: type[Dialect], beginning: str, seeds: Iterable[int]) -> None:
        """However an answer that begins with ``beginning`` goes on, it has calls, and all are right."""
        for dialect in self.dialects(kind):
            for is_parallel in (False, True):
                grammar = dialect.grammar(BOUNDED, is_forced=False, is_parallel=is_parallel)
                for seed in seeds:
                    text = self._walk(dialect, grammar, seed, beginning)
                    answers = self._answers(dialect, text)
                    assert all(is_parallel or len(answer.calls) == 1 for answer in answers), text

    def _answers(self, dialect: Dialect, text: str) -> list[Answer]:
        schemas = {tool.name: tool.parameters for tool in BOUNDED}
        answers = [
            run(dialect, [text], tools=BOUNDED, is_constrained=is_constrained)
            for is_constrained in (False, True)
        ]
        for answer in answers:
            assert answer.calls
            for name, arguments in answer.calls:
                assert conforms(json.loads(arguments), schemas[name]), (text, arguments)
        return answers

    def _walk(self, dialect: Dialect, grammar: str, seed: int, beginning: str = "") -> str:
        """An answer of random tokens among those that the grammar allows, with a given ``beginning``."""
        chance = random.Random(seed)
        matcher = LLMatcher(self._tokenizer, grammar)
        seen = dialect.visible_tokens()
        tokens = self._tokens(dialect, beginning)
        assert matcher.try_consume_tokens(tokens) == len(tokens), beginning
        text = dialect.marked(beginning).encode()
        for _ in range(_MAX_STEPS):
            if matcher.is_stopped() or (matcher.is_accepting() and chance.random() < 0.5):
                return text.decode()
            mask = matcher.compute_bitmask()
            allowed = [
                token
                for token in range(self._vocab.size)
                if mask[token // 8] >> token % 8 & 1 and token != self._vocab.eos_token
            ]
            token = chance.choice(allowed)
            assert matcher.consume_token(token), matcher.get_error()
            text += seen[token].encode() if token in seen else self._vocab.pieces[token]
        raise AssertionError(f"no end: {text!r}")

    def _tokens(self, dialect: Dialect, text: str) -> list[int]:
        tokens: list[int] = []
        for part in dialect.split(text):
            if part in dialect.special_texts:
                tokens.append(dialect.special_texts[part])
            else:
                tokens += [int(token) for token in self._vocab.tokenize(part, parse_special=False)]
        return tokens


def conforms(value: object, schema: Mapping[str, Json]) -> bool:
    """Whether a value is what a schema of ``BOUNDED`` wants."""
    match schema:
        case {"properties": dict() as properties}:
            return isinstance(value, dict) and _has_properties(value, schema, properties)
        case {"items": dict() as items}:
            return isinstance(value, list) and len(value) <= 3 and all(conforms(one, items) for one in value)
        case {"enum": list() as values}:
            return value in values
        case {"anyOf": _}:
            return value is None or (isinstance(value, str) and 1 <= len(value) <= 4)
        case {"pattern": _}:
            return isinstance(value, str) and 2 <= len(value) <= 4 and value.isalpha() and value.islower()
        case {"maxLength": int() as most, "type": kind}:
            return len(value) <= most if isinstance(value, str) else value is None and kind != "string"
        case {"maximum": int() as most}:
            return type(value) is int and 0 <= value <= most
    return isinstance(value, bool) if schema["type"] == "boolean" else value is None


def _has_properties(value: Mapping[str, object], schema: Mapping[str, Json], properties: Json) -> bool:
    required = schema.get("required", [])
    assert isinstance(required, list)
    assert isinstance(properties, dict)
    schemas = {key: one for key, one in properties.items() if isinstance(one, dict)}
    return set(required) <= set(value) <= set(schemas) and all(
        conforms(item, schemas[key]) for key, item in value.items()
    )
