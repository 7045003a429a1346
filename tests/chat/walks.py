"""A model that says anything that it may: a random walk through a mask."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.llama import TokenMask
from nexa_runtime.llama.vocab import Vocab

MAX_TOKENS = 2_000


def allowed_tokens(mask: TokenMask, vocab: Vocab) -> list[int]:
    """All tokens that the mask lets through."""
    row = np.zeros(vocab.size, dtype=np.float32)
    mask.apply(row)
    assert set(np.unique(row)) <= {0.0, -np.inf}
    allowed = [int(token) for token in np.flatnonzero(row == 0)]
    return allowed


def walk(mask: TokenMask, vocab: Vocab, seed: int, max_tokens: int = MAX_TOKENS) -> str:
    """A whole answer, each of its tokens drawn from those allowed; the forced ones are taken as they come."""
    draw = random.Random(seed)
    tokens: list[int] = []
    while not mask.is_complete:
        assert len(tokens) < max_tokens, f"no end after {text_of(vocab, tokens)[:200]!r}"
        token = draw.choice(allowed_tokens(mask, vocab))
        assert mask.allows(token)
        tokens += [token, *mask.accept(token)]
        if token in vocab.eog_tokens:
            break
    return text_of(vocab, tokens)


def feed(mask: TokenMask, vocab: Vocab, text: str) -> list[int]:
    """Accept a text token by token, as its tokenizer cuts it; what was forced counts as fed. All tokens."""
    tokens: list[int] = []
    while len(fed := text_of(vocab, tokens)) < len(text):
        assert text.startswith(fed)
        token = int(vocab.tokenize(text[len(fed) :], parse_special=True)[0])
        assert mask.allows(token), f"{vocab.special_pieces[token]!r} after {fed!r}"
        tokens += [token, *mask.accept(token)]
    return tokens


def text_of(vocab: Vocab, tokens: Sequence[int]) -> str:
    """The text of an answer, without its end token."""
    return b"".join(vocab.pieces[token] for token in tokens).decode()


def source(kind: GrammarKind, text: str, *, is_strict: bool = False) -> GrammarSource:
    """A form that a client asks for."""
    return GrammarSource(kind, text, "form", is_strict)


def of_schema(schema: Any, *, is_strict: bool = False) -> GrammarSource:
    """JSON of a schema."""
    return source(GrammarKind.JSON_SCHEMA, json.dumps(schema), is_strict=is_strict)


def start(compiler: ConstraintCompiler, one: GrammarSource) -> TokenMask:
    """A mask of a form, compiled for a tenant."""
    return compiler.compile(one, "tenant").start()
