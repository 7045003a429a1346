"""Masks of models that reason first: what may come before, in and after the reasoning."""

import json
import random

import numpy as np
import pytest

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.reasoning import ReasoningMask
from nexa_runtime.llama import Model, TokenMask
from nexa_runtime.llama.vocab import Vocab
from tests.chat.walks import allowed_tokens, feed, record, text_of

TEXT_TAGS = ReasoningTags("<think>", "</think>")
TOKEN_TAGS = ReasoningTags("<|im_start|>", "<|endoftext|>")
"""The bundled model has no tokens for reasoning; these two stand for such."""


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


@pytest.fixture
def inner(model: Model) -> TokenMask:
    """The answer is ``{"a": true}`` or ``{"a": false}``."""
    schema = json.dumps(record(a={"type": "boolean"}))
    source = GrammarSource(GrammarKind.JSON_SCHEMA, schema, "form")
    return ConstraintCompiler(model.vocab).compile(source, "tenant").start()


def token_of(vocab: Vocab, text: str) -> int:
    (token,) = vocab.tokenize(text, parse_special=True)
    return int(token)


def everything(vocab: Vocab) -> list[int]:
    return list(range(vocab.size))


def check_agreement(mask: TokenMask, vocab: Vocab) -> list[int]:
    """``allows`` and ``apply`` agree; where a text is forced, a mask lets its usual tokens through alone."""
    allowed = allowed_tokens(mask, vocab)
    others = {token for token in range(vocab.size) if mask.allows(token)} - set(allowed)
    assert all(mask.allows(token) for token in allowed)
    assert {vocab.pieces[token] for token in others} <= {b"{"}
    return allowed


def test_the_answer_is_constrained_from_the_closing_tag_on(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=None, inner=inner)
    feed(mask, vocab, "Is it? {} </thin </think>")
    assert {vocab.pieces[token][:1] for token in check_agreement(mask, vocab)} <= {b"{", b"\n", b" "}
    feed(mask, vocab, '\n\n{"a": true}')
    assert mask.is_complete


def test_an_answer_does_not_end_within_its_reasoning(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=None, inner=inner)
    feed(mask, vocab, "Well")
    assert set(everything(vocab)) - set(check_agreement(mask, vocab)) == vocab.eog_tokens
    assert not mask.is_complete


def test_without_an_inner_mask_it_may(vocab: Vocab) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=9, inner=None)
    feed(mask, vocab, "Well")
    assert check_agreement(mask, vocab) == everything(vocab)


def test_a_token_that_ends_the_tag_brings_nothing_of_the_answer(vocab: Vocab, inner: TokenMask) -> None:
    tags = ReasoningTags("<think>", "<and")
    mask = ReasoningMask(vocab, tags, is_open=True, budget=None, inner=inner)
    mask.accept(token_of(vocab, "<"))
    banned = set(everything(vocab)) - set(check_agreement(mask, vocab)) - vocab.eog_tokens
    assert all(vocab.pieces[token].startswith(b"and") and vocab.pieces[token] != b"and" for token in banned)
    mask.accept(token_of(vocab, "and"))
    feed(mask, vocab, '{"a": false}')
    assert mask.is_complete


@pytest.mark.parametrize("seed", range(10))
def test_a_tag_is_found_however_it_is_cut(vocab: Vocab, inner: TokenMask, seed: int) -> None:
    draw = random.Random(seed)
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=None, inner=inner)
    text = b"a <</th </think>"
    while text:
        token = draw.choice(
            [one for one, piece in enumerate(vocab.pieces) if piece and text.startswith(piece)]
        )
        assert mask.allows(token)
        mask.accept(token)
        text = text[len(vocab.pieces[token]) :]
    feed(mask, vocab, '{"a": false}')
    assert mask.is_complete


def test_a_used_up_budget_forces_the_closing_tag(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=3, inner=inner)
    word = token_of(vocab, "a")
    assert mask.accept(word) == ()
    assert mask.accept(word) == ()
    assert text_of(vocab, mask.accept(word)) == "</think>"
    feed(mask, vocab, '{"a": true}')
    assert mask.is_complete


def test_no_budget_is_no_reasoning(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=0, inner=inner)
    (token,) = check_agreement(mask, vocab)
    assert text_of(vocab, [token, *mask.accept(token)]) == "</think>"
    feed(mask, vocab, '{"a": true}')
    assert mask.is_complete


def test_reasoning_that_the_model_opens_has_the_budget_too(vocab: Vocab) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=False, budget=2, inner=None)
    feed(mask, vocab, "<think>")
    word = token_of(vocab, "a")
    assert mask.accept(word) == ()
    assert text_of(vocab, mask.accept(word)) == "</think>"
    for _ in range(20):
        assert mask.accept(word) == ()
    assert check_agreement(mask, vocab) == everything(vocab)


def test_a_tag_behind_the_first_word_opens_nothing(vocab: Vocab) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=False, budget=2, inner=None)
    tokens = feed(mask, vocab, "No <think> a a a a a a")
    assert text_of(vocab, tokens) == "No <think> a a a a a a"


@pytest.mark.parametrize("tags", [TEXT_TAGS, TOKEN_TAGS])
def test_an_answer_may_open_reasoning_or_begin_at_once(
    vocab: Vocab, inner: TokenMask, tags: ReasoningTags
) -> None:
    mask = ReasoningMask(vocab, tags, is_open=False, budget=None, inner=inner)
    opening = [int(token) for token in vocab.tokenize(tags.opening, parse_special=True)]
    first = check_agreement(mask, vocab)
    assert opening[0] in first
    assert token_of(vocab, '{"') in first
    for token in opening:
        assert mask.allows(token)
        mask.accept(token)
        check_agreement(mask, vocab)
    feed(mask, vocab, "hm, {")
    for token in vocab.tokenize(tags.closing, parse_special=True):
        mask.accept(int(token))
    feed(mask, vocab, '{"a": true}')
    assert mask.is_complete


def test_an_opening_tag_that_has_begun_goes_on(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=False, budget=None, inner=inner)
    opening = [int(token) for token in vocab.tokenize(TEXT_TAGS.opening, parse_special=True)]
    mask.accept(opening[0])
    assert check_agreement(mask, vocab) == [opening[1]]


def test_an_answer_that_begins_at_once_is_constrained(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=False, budget=5, inner=inner)
    feed(mask, vocab, '{"a": true}')
    assert mask.is_complete


def test_a_tag_that_is_a_token_is_not_the_same_letters(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TOKEN_TAGS, is_open=True, budget=None, inner=inner)
    for token in vocab.tokenize(TOKEN_TAGS.closing, parse_special=False):
        mask.accept(int(token))
    assert mask.allows(token_of(vocab, "a"))


def test_only_two_blank_tokens_come_before_the_answer(vocab: Vocab, inner: TokenMask) -> None:
    mask = ReasoningMask(vocab, TEXT_TAGS, is_open=True, budget=None, inner=inner)
    feed(mask, vocab, "</think>")
    newline = token_of(vocab, "\n")
    for _ in range(2):
        assert mask.allows(newline)
        assert mask.accept(newline) == ()
    assert newline not in check_agreement(mask, vocab)
    feed(mask, vocab, '{"a": true}')
    assert mask.is_complete


def test_logits_that_stay_are_not_changed(vocab: Vocab, inner: TokenMask) -> None:
    for is_open, budget in ((True, None), (True, 0), (False, None)):
        mask = ReasoningMask(vocab, TEXT_TAGS, is_open=is_open, budget=budget, inner=inner)
        row = np.arange(vocab.size, dtype=np.float32)
        mask.apply(row)
        kept = np.flatnonzero(np.isfinite(row))
        assert (row[kept] == kept).all()
