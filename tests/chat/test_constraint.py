"""Compiled constraints and their masks: what is forced, what ends, what is shared and what is kept."""

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pytest

from nexa_runtime.chat.constraint import (
    MAX_FORCED,
    MAX_STEP_S,
    REFUSAL_S,
    SLOW_STEPS,
    Constraint,
    ConstraintCompiler,
    GrammarMask,
)
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.trial import Outcome
from nexa_runtime.errors import AnswerFormError, InvalidRequestError
from nexa_runtime.llama import Model
from nexa_runtime.llama.vocab import Tokens, Vocab
from tests.chat.walks import allowed_tokens, feed, of_schema, source, start, text_of, walk
from tests.schemas import record

ResultT = TypeVar("ResultT")


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(model.vocab)


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
    with pytest.raises(AnswerFormError, match="constraint"):
        mask.accept(wrong)
    with pytest.raises(AnswerFormError):
        mask.apply(np.zeros(model.vocab.size, dtype=np.float32))


def test_a_constraint_that_grows_too_complex_ends_the_sequence(
    compiler: ConstraintCompiler, model: Model
) -> None:
    schema = {"properties": {f"p{n}": {"type": "null"} for n in range(1_000)}}
    mask = start(compiler, of_schema({"type": "object", **schema}))
    with pytest.raises(AnswerFormError, match="items") as caught:
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

    with pytest.raises(AnswerFormError, match="states"):
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


def test_what_is_cached_costs_no_work(model: Model) -> None:
    compiler = ConstraintCompiler(model.vocab)
    built: list[int] = []

    def build() -> str:
        built.append(1)
        return 'start: "a"'

    one = GrammarSource(GrammarKind.DIALECT, "tools", "tools", build=build)
    assert compiler.cached(one, "tenant") is None
    assert built == []
    constraint = compiler.compile(one, "tenant")
    assert compiler.cached(one, "tenant") is constraint
    assert compiler.cached(one, "other") is None
    assert built == [1]
    constraint.is_spent = True
    assert compiler.cached(one, "tenant") is None


class Trials:
    """What stands in for trials, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
        self.num_held = 0
        self._outcome = outcome
        monkeypatch.setattr("nexa_runtime.chat.constraint.try_grammar", self)

    def __call__(self, text: str) -> Outcome:
        self.num_held += 1
        return self._outcome


def test_a_refusal_is_kept_for_a_while(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    compiler = ConstraintCompiler(model.vocab, clock=lambda: now)
    trials = Trials(monkeypatch, Outcome.TOO_LONG)
    text = 'start: "a"'

    def refusal(param: str, tenant_id: str = "tenant") -> str:
        with pytest.raises(InvalidRequestError) as caught:
            compiler.compile(GrammarSource(GrammarKind.GRAMMAR, text, param), tenant_id)
        assert caught.value.param == param
        return str(caught.value)

    first = refusal("one")
    assert "longer than 2 seconds" in first
    assert refusal("two") == first
    assert trials.num_held == 1
    assert compiler.cached(source(GrammarKind.GRAMMAR, text), "tenant") is None
    refusal("one", "other")
    assert trials.num_held == 2
    now = REFUSAL_S - 1
    refusal("one")
    assert trials.num_held == 2
    now = REFUSAL_S
    refusal("one")
    assert trials.num_held == 3


def test_whether_a_schema_can_be_followed_is_asked_once(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = ConstraintCompiler(model.vocab)
    trials = Trials(monkeypatch, Outcome.PASSED)
    mixed: dict[str, Any] = {"type": "object", "allOf": [record(a={}), {"description": "not plain"}]}
    for _ in range(2):
        assert compiler.supports(mixed, "tenant")
        assert compiler.supports(record(a={"type": "integer"}), "tenant")
        assert not compiler.supports({"type": "object", "propertyNames": {"pattern": "a"}}, "tenant")
        assert not compiler.supports({**mixed, "minContains": 1, "contains": {}}, "tenant")
        assert not compiler.supports({"$ref": "http://a"}, "tenant")
        assert not compiler.supports({"const": float("nan")}, "tenant")
        assert not compiler.supports({"const": "\ud800"}, "tenant")
    assert trials.num_held == 2
    deep = json.loads('{"items":' * 900 + "{}" + "}" * 900)
    assert not compiler.supports(deep, "tenant")
    assert compiler.cached(of_schema(mixed), "tenant") is None


def test_what_is_compiled_is_supported_and_what_is_refused_is_not(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = ConstraintCompiler(model.vocab)
    trials = Trials(monkeypatch, Outcome.DIED)
    mixed: dict[str, Any] = {"type": "object", "allOf": [record(a={}), {"description": "not plain"}]}
    with pytest.raises(InvalidRequestError, match="too large"):
        compiler.compile(of_schema(mixed), "tenant")
    assert not compiler.supports(mixed, "tenant")
    assert trials.num_held == 1
    plain = record(a={})
    compiler.compile(of_schema(plain), "tenant")
    monkeypatch.setattr("nexa_runtime.chat.constraint.LLMatcher", None)
    assert compiler.supports(plain, "tenant")


class PanicException(BaseException):
    """As llguidance's panics look from here."""


class Matcher:
    """What a mask needs of a matcher; every call takes ``slow_s`` of the clock, or is a panic."""

    def __init__(self, slow_s: float = 0.0, error: BaseException | None = None) -> None:
        self.now = 0.0
        self.slow_s = slow_s
        self.error = error

    def clock(self) -> float:
        return self.now

    def is_error(self) -> bool:
        return False

    def is_stopped(self) -> bool:
        return False

    def validate_tokens(self, tokens: list[int]) -> int:
        return self._work(len(tokens))

    def consume_tokens(self, tokens: list[int]) -> bool:
        return self._work(True)

    def compute_ff_tokens(self) -> list[int]:
        return []

    def compute_bitmask(self) -> bytes:
        return self._work(b"\xff" * 100_000)

    def deep_copy(self) -> "Matcher":
        return self._work(self)

    def _work(self, result: ResultT) -> ResultT:
        self.now += self.slow_s
        if self.error is not None:
            raise self.error
        return result


def mask_of(matcher: Matcher, vocab: Vocab) -> tuple[GrammarMask, Constraint]:
    one: Any = matcher
    constraint = Constraint(one, vocab)
    return GrammarMask(one, vocab, constraint, matcher.clock), constraint


def test_a_form_that_takes_too_long_ends_its_own_sequence(model: Model) -> None:
    row = np.zeros(model.vocab.size, dtype=np.float32)
    matcher = Matcher(slow_s=MAX_STEP_S / 2)
    mask, constraint = mask_of(matcher, model.vocab)

    def step() -> None:
        mask.allows(5)
        mask.apply(row)
        mask.accept(5)

    for _ in range(SLOW_STEPS - 1):
        step()
    with pytest.raises(AnswerFormError, match="takes too long to follow"):
        step()
    assert not constraint.is_spent


def test_a_form_may_be_slow_at_times(model: Model) -> None:
    matcher = Matcher()
    mask, _ = mask_of(matcher, model.vocab)
    for number in range(10 * SLOW_STEPS):
        matcher.slow_s = 0.9 * SLOW_STEPS * MAX_STEP_S if number % SLOW_STEPS == 0 else 0.0
        mask.accept(5)


def test_a_panic_ends_the_sequence_and_the_constraint(model: Model) -> None:
    row = np.zeros(model.vocab.size, dtype=np.float32)
    calls: list[Callable[[GrammarMask], object]] = [
        lambda mask: mask.allows(5),
        lambda mask: mask.apply(row),
        lambda mask: mask.accept(5),
    ]
    for call in calls:
        mask, constraint = mask_of(Matcher(error=PanicException("index out of bounds")), model.vocab)
        with pytest.raises(AnswerFormError, match="too complex"):
            call(mask)
        assert constraint.is_spent
        with pytest.raises(AnswerFormError):
            constraint.start()
        mask, _ = mask_of(Matcher(error=KeyboardInterrupt()), model.vocab)
        with pytest.raises(KeyboardInterrupt):
            call(mask)


def test_a_panic_while_compiling_refuses_the_source(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = ConstraintCompiler(model.vocab)

    def panic(*arguments: object, **options: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("nexa_runtime.chat.constraint.LLMatcher", panic)
    with pytest.raises(InvalidRequestError, match="expression cannot be used: it is too complex"):
        compiler.compile(source(GrammarKind.REGEX, "a"), "tenant")


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
