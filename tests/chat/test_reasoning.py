"""Masks of models that reason first: what may come before, in and after the reasoning."""

import json
import random
from collections.abc import Iterator

import gguf
import numpy as np
import pytest

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.dialects.base import Dialect, ReasoningTags
from nexa_runtime.chat.dialects.gemma import Gemma4
from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.messages import Tool
from nexa_runtime.chat.reasoning import ChannelMask, ReasoningMask
from nexa_runtime.llama import Model, TokenMask
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.vocab import Vocab
from nexa_runtime.serving.library import DEMO_PATH
from tests.chat.walks import allowed_tokens, feed, text_of
from tests.schemas import record
from tests.support import copy_model

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


MARKERS = [*Harmony.markers, "<|return|>", "<|call|>", *Gemma4.markers]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocab]:
    """A vocabulary with the markers of gpt-oss and Gemma 4."""
    fields = gguf.GGUFReader(DEMO_PATH).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    tokens[-len(MARKERS) :] = MARKERS
    kinds[-len(MARKERS) :] = [gguf.TokenType.CONTROL] * len(MARKERS)
    path = tmp_path_factory.mktemp("channels") / "model.gguf"
    loaded = Model.load(copy_model(path, tokens=tokens, token_type=kinds))
    yield loaded.vocab
    loaded.close()


def tools_of(dialect: Dialect, vocab: Vocab) -> TokenMask:
    """The answer is any text, or a call of ``clock``."""
    tool = Tool("clock", None, record(a={"type": "boolean"}))
    grammar = dialect.grammar([tool], is_forced=False, is_parallel=False)
    source = GrammarSource(GrammarKind.DIALECT, grammar, "tools")
    return ConstraintCompiler(vocab).compile(source, "tenant").start()


def take(mask: TokenMask, vocab: Vocab, text: str) -> str:
    """The text, token for token, and what the mask forces behind its last one; before, it must force it."""
    tokens = vocab.tokenize(text, parse_special=True).tolist()
    forced: list[int] = []
    for token in tokens:
        if forced:
            assert forced.pop(0) == token
            continue
        assert mask.allows(token)
        forced = list(mask.accept(token))
    return b"".join(vocab.special_pieces[token] for token in forced).decode()


def channel_mask(vocab: Vocab, budget: int, *, has_tools: bool) -> ChannelMask:
    dialect = Harmony(vocab.special_texts)
    assert dialect.channel is not None
    inner = tools_of(dialect, vocab) if has_tools else None
    return ChannelMask(vocab, dialect.channel, budget=budget, inner=inner)


@pytest.mark.parametrize("has_tools", [False, True])
def test_a_message_of_reasoning_has_a_budget(channels: Vocab, has_tools: bool) -> None:
    mask = channel_mask(channels, 6, has_tools=has_tools)  # a space is a token of its own
    assert take(mask, channels, ANALYSIS + " a a") == ""
    assert take(mask, channels, " a") == "<|end|><|start|>assistant"
    (channel,) = channels.tokenize("<|channel|>", parse_special=True).tolist()
    assert mask.allows(channel)
    mask.accept(channel)
    named = channels.tokenize(ANALYSIS, parse_special=True).tolist()[1]
    assert not mask.allows(named)
    row = np.zeros(channels.size, dtype=np.float32)
    mask.apply(row)
    assert row[named] == -np.inf
    take(mask, channels, "final<|message|> a a a a a a")


def test_messages_of_reasoning_share_their_budget(channels: Vocab) -> None:
    mask = channel_mask(channels, 10, has_tools=False)
    said = ANALYSIS + " a a<|end|><|start|>assistant"
    assert take(mask, channels, said) == ""
    assert take(mask, channels, ANALYSIS + " a a a") == "<|end|><|start|>assistant"
    assert take(mask, channels, FINAL + " a" * 20) == ""


def test_what_is_no_message_of_reasoning_costs_nothing(channels: Vocab) -> None:
    mask = channel_mask(channels, 2, has_tools=True)
    commentary = "<|channel|>commentary<|message|> a a a a<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{"a": true}'
    take(mask, channels, commentary + call)
    assert mask.is_complete


def test_a_message_of_reasoning_does_not_end_within_a_character(channels: Vocab) -> None:
    mask = channel_mask(channels, 1, has_tools=True)
    take(mask, channels, ANALYSIS)
    first, second = (channels.pieces.index(bytes([byte])) for byte in "é".encode())
    assert len(mask.accept(first)) == 0
    assert mask.allows(second)
    assert text_of(channels, mask.accept(second)).endswith("assistant")


def test_a_tag_that_begins_with_a_marker_is_the_masks(channels: Vocab) -> None:
    dialect = Gemma4(channels.special_texts)
    assert dialect.reasoning is not None
    mask = ReasoningMask(
        channels, dialect.reasoning, is_open=False, budget=6, inner=tools_of(dialect, channels)
    )
    assert take(mask, channels, "<|channel>thought a a") == ""
    assert take(mask, channels, " a") == "<channel|>"
    take(mask, channels, "<|tool_call>call:clock{a:true}<tool_call|>")


def test_the_letters_of_a_marker_open_nothing(channels: Vocab) -> None:
    tags = ReasoningTags("<|channel>thought", "<channel|>")
    mask = ReasoningMask(channels, tags, is_open=False, budget=1, inner=None)
    for token in channels.tokenize("<|chan", parse_special=False).tolist():
        assert mask.accept(token) == ()
    assert take(mask, channels, "nel>thought a a a") == ""


@pytest.mark.parametrize("tags", [TEXT_TAGS, TOKEN_TAGS])
@pytest.mark.parametrize("blanks", ["\n", "\n "])
def test_blanks_in_front_of_the_opening_tag_are_skipped(
    vocab: Vocab, tags: ReasoningTags, blanks: str
) -> None:
    mask = ReasoningMask(vocab, tags, is_open=False, budget=2, inner=None)
    assert take(mask, vocab, blanks + tags.opening + "a") == ""
    closing = vocab.special_pieces[vocab.tokenize(tags.closing, parse_special=True)[-1]].decode()
    assert take(mask, vocab, "a").endswith(closing)


def test_no_more_than_two_blanks_are(vocab: Vocab) -> None:
    mask = ReasoningMask(vocab, TOKEN_TAGS, is_open=False, budget=1, inner=None)
    for token in [token_of(vocab, "\n")] * 3:
        mask.accept(token)
    assert take(mask, vocab, TOKEN_TAGS.opening + "aaaa") == ""


def test_blanks_are_no_part_of_an_answer_that_takes_them_too(channels: Vocab) -> None:
    dialect = Gemma4(channels.special_texts)
    assert dialect.reasoning is not None
    mask = ReasoningMask(
        channels, dialect.reasoning, is_open=False, budget=4, inner=tools_of(dialect, channels)
    )
    assert take(mask, channels, "\n<|channel>thought a") == ""
    assert take(mask, channels, " a") == "<channel|>"


def test_two_masks_go_through_a_vocabulary_once(vocab: Vocab, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked() -> set[int]:
        mask = ReasoningMask(vocab, ReasoningTags("<t>", "<and"), is_open=True, budget=None, inner=FREE)
        mask.accept(token_of(vocab, "<"))
        row = np.zeros(vocab.size, dtype=np.float32)
        mask.apply(row)
        return set(np.flatnonzero(np.isinf(row)).tolist()) - vocab.eog_tokens

    first = masked()
    pieces = vocab.special_pieces
    assert first == {
        token for token, piece in enumerate(pieces) if piece.startswith(b"and") and piece[3:].strip()
    }
    monkeypatch.setattr(vocab, "special_pieces", _Unread(pieces))
    assert masked() == first


class _Unread(list[bytes]):
    """May be looked into, but not gone through."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("the vocabulary was gone through again")


class _Free:
    """A mask that allows everything."""

    is_complete = False

    def allows(self, token: int) -> bool:
        return True

    def apply(self, row: Logits) -> None:
        pass

    def accept(self, token: int) -> tuple[int, ...]:
        return ()


FREE = _Free()
