"""Bounded schemas of every kind: whatever a mask lets through is JSON that fits."""

import json
from typing import Any

import jsonschema
import pytest

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.llama import Model
from tests.chat.walks import feed, of_schema, start, walk
from tests.schemas import SCHEMAS, items, record

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def tree(levels: int) -> dict[str, Any]:
    """A recursive schema whose depth is bounded by definitions that name one another."""
    nodes: dict[str, Any] = {
        f"n{n}": record(v=DIGIT, c=items({"$ref": f"#/$defs/n{n + 1}"}, 0, 2)) for n in range(levels)
    }
    return {"$ref": "#/$defs/n0", "$defs": {**nodes, f"n{levels}": {"type": "null"}}}


FORMS = {**SCHEMAS, "a tree": tree(2)}


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(model.vocab)


@pytest.mark.parametrize("name", FORMS)
def test_json_of_a_schema_is_valid_20_times_of_20(
    compiler: ConstraintCompiler, model: Model, name: str
) -> None:
    schema = FORMS[name]
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
