"""Constraints: that every answer a mask allows has the form, and that nothing in a source does harm."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest

from nexa_runtime.chat.constraint import MAX_FORCED, ConstraintCompiler
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.errors import DecodeError, InvalidRequestError
from nexa_runtime.llama import Model, TokenMask
from tests.chat.walks import allowed_tokens, feed, record, text_of, walk

STRING = {"type": "string", "maxLength": 8}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def items(schema: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": low, "maxItems": high}


def tree(levels: int) -> dict[str, Any]:
    """A recursive schema whose depth is bounded by definitions that name one another."""
    nodes: dict[str, Any] = {
        f"n{n}": record(v=DIGIT, c=items({"$ref": f"#/$defs/n{n + 1}"}, 0, 2)) for n in range(levels)
    }
    return {"$ref": "#/$defs/n0", "$defs": {**nodes, f"n{levels}": {"type": "null"}}}


SCHEMAS: dict[str, dict[str, Any]] = {
    "one text": record(name=STRING),
    "lengths": record(word={"type": "string", "minLength": 3, "maxLength": 5}),
    "a range": record(age={"type": "integer", "minimum": 0, "maximum": 120}),
    "a negative range": record(n={"type": "integer", "minimum": -1005, "maximum": -7}),
    "exclusive bounds": record(n={"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7}),
    "a range of numbers": record(n={"type": "number", "minimum": 0.25, "maximum": 1.5}),
    "a multiple": record(n={"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 35}),
    "a decimal multiple": record(n={"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25}),
    "booleans and null": record(a={"type": "boolean"}, b={"type": "null"}),
    "an enum of texts": record(color={"enum": ["red", "green", 'bl"ue', "größe", "日本"]}),
    "an enum of values": record(value={"enum": [1, "two", None, True, [3, 4], {"a": 5}]}),
    "constants": record(kind={"const": "fixed"}, other={"const": {"b": [1, 2.5, "x y"]}}),
    "a pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "a pattern with choices": record(time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}),
    "nested objects": record(outer=record(middle=record(inner=STRING))),
    "a list": record(values=items(DIGIT, 1, 4)),
    "a list of objects": record(points=items(record(x=DIGIT, y=DIGIT), 0, 3)),
    "lists of lists": record(grid=items(items({"type": "boolean"}, 2, 2), 2, 2)),
    "a tuple": {"type": "array", "prefixItems": [STRING, DIGIT], "items": False, "minItems": 2},
    "references": {
        **record(a={"$ref": "#/$defs/one"}, b={"$ref": "#/$defs/one"}),
        "$defs": {"one": record(c={"$ref": "#/$defs/two"}), "two": {"enum": ["x", "y"]}},
    },
    "any of two types": record(value={"anyOf": [{"type": "boolean"}, DIGIT]}),
    "any of two objects": {
        "anyOf": [record(kind={"const": "cat"}, lives=DIGIT), record(kind={"const": "dog"}, name=STRING)]
    },
    "one of two objects": {
        "oneOf": [record(kind={"const": "cat"}, lives=DIGIT), record(kind={"const": "dog"}, name=STRING)]
    },
    "a type or null": record(nick={"type": ["string", "null"], "maxLength": 8}),
    "optional properties": {
        "type": "object",
        "properties": {"a": STRING, "b": DIGIT, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "all of": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": DIGIT}, "required": ["b"]}],
               "$defs": {"base": {"type": "object", "properties": {"a": STRING}, "required": ["a"]}},
               "maxProperties": 2},
    "a map": {
        "type": "object",
        "patternProperties": {"^[a-c]{1,3}$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "formats": record(
        day={"type": "string", "format": "date"},
        id={"type": "string", "format": "uuid"},
        at={"type": "string", "format": "time"},
        ip={"type": "string", "format": "ipv4"},
    ),
    "a tree": tree(3),
    "a list at the top": items({"enum": ["a", "b", "c"]}, 1, 5),
    "an order": record(
        customer=record(name=STRING, vip={"type": "boolean"}),
        lines=items(record(sku={"type": "string", "pattern": "^[a-z]{3}[0-9]{2}$"}, count=DIGIT), 1, 3),
        note={"anyOf": [STRING, {"type": "null"}]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(model.vocab)


def source(kind: GrammarKind, text: str, *, is_strict: bool = False) -> GrammarSource:
    return GrammarSource(kind, text, "form", is_strict)


def of_schema(schema: Any, *, is_strict: bool = False) -> GrammarSource:
    return source(GrammarKind.JSON_SCHEMA, json.dumps(schema), is_strict=is_strict)


def start(compiler: ConstraintCompiler, one: GrammarSource) -> TokenMask:
    return compiler.compile(one, "tenant").start()


def test_there_are_thirty_schemas() -> None:
    assert len(SCHEMAS) >= 30


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_of_a_schema_is_valid_20_times_of_20(
    compiler: ConstraintCompiler, model: Model, name: str
) -> None:
    schema = SCHEMAS[name]
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    one = of_schema(schema, is_strict=name == "all of")
    for seed in range(20):
        checker.validate(json.loads(walk(start(compiler, one), model.vocab, seed)))


def test_a_strict_schema_has_no_other_properties(compiler: ConstraintCompiler, model: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    for seed in range(10):
        text = walk(start(compiler, of_schema(schema, is_strict=True)), model.vocab, seed)
        assert text == '{"a": 1}'


def test_a_recursive_schema_can_be_followed_to_any_depth(compiler: ConstraintCompiler, model: Model) -> None:
    schema = {"$ref": "#/$defs/n", "$defs": {"n": record(v=DIGIT, c=items({"$ref": "#/$defs/n"}, 0, 2))}}
    mask = start(compiler, of_schema(schema))
    depth = 12
    feed(mask, model.vocab, '{"v": 1, "c": [' * depth + '{"v": 2, "c": []}' + "]}" * depth)
    assert mask.is_complete


def test_a_forced_key_comes_with_the_token_before_it(compiler: ConstraintCompiler, model: Model) -> None:
    schema = record(temperature={"type": "boolean"})
    mask = start(compiler, of_schema(schema))
    first = int(model.vocab.tokenize("{", parse_special=False)[0])
    assert mask.allows(first)
    forced = text_of(model.vocab, mask.accept(first))
    assert '{"temperature": '.startswith("{" + forced.rstrip())
    assert "temperature" in forced


def test_a_long_forced_text_comes_in_parts(compiler: ConstraintCompiler, model: Model) -> None:
    """A word so long that it would overflow the stack of some tokenizers."""
    text = json.dumps({"a": "x" * 60_000})
    mask = start(compiler, of_schema(record(a={"const": "x" * 60_000})))
    tokens: list[int] = []
    while len(tokens) < 5 * MAX_FORCED:
        token = allowed_tokens(mask, model.vocab)[0]
        forced = mask.accept(token)
        assert 0 < len(forced) <= MAX_FORCED
        tokens += [token, *forced]
    assert text.startswith(text_of(model.vocab, tokens))
    assert not mask.is_complete


def test_an_answer_that_may_go_on_may_also_end(compiler: ConstraintCompiler, model: Model) -> None:
    end = min(model.vocab.eog_tokens)
    mask = start(compiler, source(GrammarKind.REGEX, "[0-9]{1,3}"))
    assert not mask.allows(end)
    mask.accept(int(model.vocab.tokenize("7", parse_special=False)[0]))
    assert not mask.is_complete
    assert all(mask.allows(token) for token in model.vocab.eog_tokens)
    assert model.vocab.eog_tokens < set(allowed_tokens(mask, model.vocab))
    assert mask.accept(end) == ()
    assert mask.is_complete


def test_after_the_last_token_only_the_end_may_come(compiler: ConstraintCompiler, model: Model) -> None:
    mask = start(compiler, source(GrammarKind.CHOICE, '["no"]'))
    feed(mask, model.vocab, "no")
    assert mask.is_complete
    assert allowed_tokens(mask, model.vocab) == sorted(model.vocab.eog_tokens)
    assert mask.allows(min(model.vocab.eog_tokens))
    assert mask.accept(min(model.vocab.eog_tokens)) == ()


def test_masks_of_one_constraint_do_not_disturb_each_other(
    compiler: ConstraintCompiler, model: Model
) -> None:
    constraint = compiler.compile(source(GrammarKind.REGEX, "(a|b)-(c|d)"), "tenant")
    one, other = constraint.start(), constraint.start()
    fresh = allowed_tokens(constraint.start(), model.vocab)
    feed(one, model.vocab, "a-c")
    assert one.is_complete
    assert allowed_tokens(other, model.vocab) == fresh
    feed(other, model.vocab, "b-d")
    assert allowed_tokens(constraint.start(), model.vocab) == fresh


def test_other_logits_stay_as_they_are(compiler: ConstraintCompiler, model: Model) -> None:
    mask = start(compiler, source(GrammarKind.REGEX, "[0-9]+"))
    row = np.arange(model.vocab.size, dtype=np.float32)
    mask.apply(row)
    kept = np.flatnonzero(np.isfinite(row))
    assert (row[kept] == kept).all()
    assert [mask.allows(token) for token in range(model.vocab.size)] == np.isfinite(row).tolist()


def test_a_token_that_is_not_allowed_ends_the_sequence(compiler: ConstraintCompiler, model: Model) -> None:
    mask = start(compiler, source(GrammarKind.REGEX, "[0-9]+"))
    wrong = int(model.vocab.tokenize("x", parse_special=False)[0])
    assert not mask.allows(wrong)
    with pytest.raises(DecodeError, match="constraint"):
        mask.accept(wrong)
    with pytest.raises(DecodeError):
        mask.apply(np.zeros(model.vocab.size, dtype=np.float32))


def test_a_constraint_that_grows_too_complex_ends_the_sequence(
    compiler: ConstraintCompiler, model: Model
) -> None:
    schema = {"properties": {f"p{n}": {"type": "null"} for n in range(1_000)}}
    mask = start(compiler, of_schema({"type": "object", **schema}))
    with pytest.raises(DecodeError, match="items") as caught:
        feed(mask, model.vocab, '{"p7": null}')
    assert "\n" not in str(caught.value)


def test_a_constraint_that_failed_is_compiled_anew(model: Model) -> None:
    compiler = ConstraintCompiler(model.vocab)
    one = source(GrammarKind.REGEX, "(.*a.{15}b.*|.*c.{15}d.*|.*[e-h].{15}[i-l].*){3}")
    constraint = compiler.compile(one, "tenant")

    def walk_on() -> None:
        for seed in range(20):
            draw = random.Random(seed)
            mask = constraint.start()
            for _ in range(150):
                mask.accept(draw.choice(allowed_tokens(mask, model.vocab)))

    with pytest.raises(DecodeError, match="states"):
        walk_on()
    fresh = compiler.compile(one, "tenant")
    assert fresh is not constraint
    assert allowed_tokens(fresh.start(), model.vocab)


def test_compiled_constraints_are_kept_per_tenant(model: Model) -> None:
    compiler = ConstraintCompiler(model.vocab, max_per_tenant=2, max_in_all=4)
    numbers = [source(GrammarKind.REGEX, f"[0-9]{{{n}}}") for n in range(1, 5)]
    kept = [compiler.compile(one, "a") for one in numbers[:2]]
    assert compiler.compile(numbers[0], "a") is kept[0]
    assert compiler.compile(numbers[0], "b") is not kept[0]
    compiler.compile(numbers[2], "a")
    assert compiler.compile(numbers[0], "a") is kept[0]
    assert compiler.compile(numbers[1], "a") is not kept[1]


def test_a_tenant_with_few_constraints_keeps_them_when_others_have_many(model: Model) -> None:
    compiler = ConstraintCompiler(model.vocab, max_per_tenant=3, max_in_all=4)
    numbers = [source(GrammarKind.REGEX, f"[0-9]{{{n}}}") for n in range(1, 9)]
    kept = compiler.compile(numbers[0], "quiet")
    for one in numbers:
        compiler.compile(one, "loud")
    compiler.compile(numbers[0], "third")
    assert compiler.compile(numbers[0], "quiet") is kept


def test_a_constraint_is_known_by_all_that_matters(compiler: ConstraintCompiler) -> None:
    text = '{"type": "object", "properties": {"a": {}}}'
    sources = [
        source(GrammarKind.JSON_SCHEMA, text),
        source(GrammarKind.JSON_SCHEMA, text, is_strict=True),
        source(GrammarKind.JSON_SCHEMA, text + " "),
        source(GrammarKind.REGEX, "a"),
        source(GrammarKind.GRAMMAR, 'start: "a"'),
    ]
    compiled = [compiler.compile(one, "same") for one in sources]
    assert len(set(map(id, compiled))) == len(sources)
    other_param = GrammarSource(GrammarKind.REGEX, "a", "regex")
    assert compiler.compile(other_param, "same") is compiled[3]


def test_errors_are_not_kept(compiler: ConstraintCompiler) -> None:
    for param in ("one", "two"):
        with pytest.raises(InvalidRequestError) as caught:
            compiler.compile(GrammarSource(GrammarKind.REGEX, "(", param), "tenant")
        assert caught.value.param == param


def test_many_threads_may_compile_at_once(model: Model) -> None:
    compiler = ConstraintCompiler(model.vocab)
    barrier = threading.Barrier(8)

    def work(number: int) -> list[str]:
        barrier.wait()
        texts = []
        for n in range(20):
            one = of_schema(record(value={"const": n % 5}))
            texts.append(walk(compiler.compile(one, f"t{number % 3}").start(), model.vocab, n))
        return texts

    with ThreadPoolExecutor(8) as pool:
        assert all(
            texts == [f'{{"value": {n % 5}}}' for n in range(20)] for texts in pool.map(work, range(8))
        )
