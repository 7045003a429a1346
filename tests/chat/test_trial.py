"""The trial of a grammar: what harms its process harms nothing else."""

import json

from llguidance import LLMatcher

from nexa_runtime.chat.trial import Outcome, try_grammar


def test_a_grammar_that_compiles_passes() -> None:
    assert try_grammar(LLMatcher.grammar_from_lark('start: "größe" | "x"')) is Outcome.PASSED


def test_an_error_is_left_to_whoever_compiles_it_next() -> None:
    assert try_grammar(LLMatcher.grammar_from_lark("start: nothing")) is Outcome.PASSED
    assert try_grammar("no grammar at all") is Outcome.PASSED


def test_one_that_overflows_the_stack_dies() -> None:
    rules = "".join(f"a{n}: a{n + 1}\n" for n in range(20_000))
    lark = f'start: a0\n{rules}a20000: "x"\n'
    assert try_grammar(LLMatcher.grammar_from_lark(lark)) is Outcome.DIED


def test_one_that_never_ends_is_ended() -> None:
    schema = {"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(60)]}
    text = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert try_grammar(text, deadline_s=0.5) is Outcome.TOO_LONG
