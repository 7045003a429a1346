"""Compiled constraints and their masks: what is forced, what ends, what is shared and what is kept."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from nexa_runtime.chat.constraint import MAX_FORCED, ConstraintCompiler
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.errors import DecodeError, InvalidRequestError
from nexa_runtime.llama import Model, TokenMask
from nexa_runtime.llama.vocab import Tokens, Vocab
from tests.chat.walks import allowed_tokens, feed, record, text_of, walk


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(model.vocab)


def source(kind: GrammarKind, text: str, *, is_strict: bool = False) -> GrammarSource:
    return GrammarSource(kind, text, "form", is_strict)


def of_schema(schema: Any, *, is_strict: bool = False) -> GrammarSource:
    return source(GrammarKind.JSON_SCHEMA, json.dumps(schema), is_strict=is_strict)


def start(compiler: ConstraintCompiler, one: GrammarSource) -> TokenMask:
    return compiler.compile(one, "tenant").start()


def test_a_forced_key_comes_with_the_token_before_it(compiler: ConstraintCompiler, model: Model) -> None:
    schema = record(temperature={"type": "boolean"})
    mask = start(compiler, of_schema(schema))
    first = int(model.vocab.tokenize("{", parse_special=False)[0])
    assert mask.allows(first)
    forced = text_of(model.vocab, mask.accept(first))
    assert '{"temperature": '.startswith("{" + forced.rstrip())
    assert "temperature" in forced


class SpacedVocab(Vocab):
    """As of a tokenizer that puts a space before every text."""

    def __init__(self, real: Vocab) -> None:
        self.__dict__.update(real.__dict__)

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> Tokens:
        return super().tokenize(" " + text, parse_special=parse_special, add_special=add_special)


def test_a_forced_text_has_no_space_of_the_tokenizer_before_it(
    compiler: ConstraintCompiler, model: Model
) -> None:
    one = of_schema(record(temperature={"const": "high or low"}))
    first = int(model.vocab.tokenize('{"', parse_special=False)[0])
    spaced = ConstraintCompiler(SpacedVocab(model.vocab)).compile(one, "tenant").start()
    forced = spaced.accept(first)
    assert list(forced) == list(start(compiler, one).accept(first))
    assert '{"' + text_of(model.vocab, forced) == '{"temperature": "high or low"}'


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
