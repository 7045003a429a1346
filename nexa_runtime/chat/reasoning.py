"""Masks for models that reason before they answer: what constrains the answer waits until they are done.

Owns where reasoning begins and ends in the tokens of one answer, and its budget. It knows no grammar: what
may follow the reasoning is up to an inner mask. ``serving`` makes one per sequence; the engine thread alone
calls it.

``ReasoningMask``: a tag that is one token is that token, and the same letters in other tokens are not the
tag. Any other tag is found in the text, however it is cut into tokens. Before the first token of an answer
both the opening tag and the beginning of an answer may come; where a token may be either, one that is a
marker is the tag's, and else the inner mask has it. ``ChannelMask``: reasoning is messages of the answer
itself, of which the inner mask knows.
"""

import threading
import weakref
from collections.abc import Sequence
from enum import Enum

import numpy as np

from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.errors import DecodeError
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.mask import TokenMask
from nexa_runtime.llama.vocab import Vocab

_BLANKS = ("\n", "\n\n", " ", " \n")
_MAX_BLANKS = 2
"""Tokens of blanks let through before the reasoning, and between it and the answer."""


class _Stage(Enum):
    """START: the opening tag may come, after blanks that no inner mask is told of. GAP: after the closing
    tag, before the answer.
    """

    START = "start"
    REASONING = "reasoning"
    GAP = "gap"
    ANSWER = "answer"


class ReasoningMask:
    """A ``TokenMask``. ``is_open``: the prompt has opened the reasoning. ``budget``: most tokens of it; None:
    any number. ``inner``: the mask of the answer, without which it is free, and may end anywhere.
    """

    def __init__(
        self, vocab: Vocab, tags: ReasoningTags, *, is_open: bool, budget: int | None, inner: TokenMask | None
    ) -> None:
        self._pieces = vocab.special_pieces
        self._inner = inner
        self._left = budget
        self._opening = _Tag(vocab, tags.opening)
        self._closing = _Tag(vocab, tags.closing)
        first = self._opening.tokens[0]
        self._marker = first if self._opening.is_single or first in vocab.marker_tokens else None
        """The token that nothing but the opening tag begins with, if it begins with such a one."""
        self._stage = _Stage.REASONING if is_open else _Stage.START
        self._num_blanks = 0
        self._eog_tokens = vocab.eog_tokens
        blanks = (vocab.tokenize(text, parse_special=False).tolist() for text in _BLANKS)
        self._blanks = [tokens[0] for tokens in blanks if len(tokens) == 1]

    def allows(self, token: int) -> bool:
        if self._must_close:
            return token == self._closing.tokens[0]
        if self._inner is None:
            return True
        if self._stage is _Stage.REASONING:
            return token not in self._eog_tokens and not self._closing.is_overrun_by(self._pieces[token])
        if self._stage is _Stage.START and self._opening.text_so_far:
            return token == self._opening.next_token
        return token in self._extra_tokens() or self._inner.allows(token)

    def apply(self, row: Logits) -> None:
        if self._must_close:
            _keep(row, self._closing.tokens[0])
        elif self._inner is None:
            return
        elif self._stage is _Stage.REASONING:
            row[[*self._eog_tokens, *self._closing.overrunning_tokens()]] = -np.inf
        elif self._stage is _Stage.START and self._opening.text_so_far:
            _keep(row, self._opening.next_token)
        else:
            extra = self._extra_tokens()
            logits = row[extra]
            self._inner.apply(row)
            row[extra] = logits

    def accept(self, token: int) -> Sequence[int]:
        if self._stage is _Stage.REASONING:
            return self._accept_reasoning(token)
        if self._stage is _Stage.START and self._opens(token):
            if self._opening.find(self._pieces[token], token) is None:
                return ()
            self._stage = _Stage.REASONING
            return self._close() if self._must_close else ()
        if self._stage is _Stage.START and self._is_skipped(token):
            self._num_blanks += 1
            return ()
        if self._stage is _Stage.GAP and token in self._blanks and not self._inner_allows(token):
            self._num_blanks += 1
            if self._num_blanks == _MAX_BLANKS:
                self._stage = _Stage.ANSWER
            return ()
        self._stage = _Stage.ANSWER
        return () if self._inner is None else self._inner.accept(token)

    @property
    def is_complete(self) -> bool:
        return self._stage is _Stage.ANSWER and self._inner is not None and self._inner.is_complete

    @property
    def _must_close(self) -> bool:
        """Whether no token of reasoning is left."""
        return self._stage is _Stage.REASONING and self._left is not None and self._left <= 0

    def _accept_reasoning(self, token: int) -> Sequence[int]:
        if self._must_close:
            return self._close()[1:]
        rest = self._closing.find(self._pieces[token], token)
        if rest is not None:
            if rest.strip() and self._inner is not None:
                raise DecodeError("its answer began within the last token of its reasoning")
            self._stage, self._num_blanks = _Stage.GAP, 0
            return ()
        if self._left is not None:
            self._left -= 1
        return self._close() if self._must_close else ()

    def _close(self) -> Sequence[int]:
        self._stage, self._num_blanks = _Stage.GAP, 0
        return self._closing.tokens

    def _extra_tokens(self) -> list[int]:
        """What may come beside the tokens of the answer."""
        if self._stage is _Stage.START:
            return [self._opening.tokens[0]]
        return self._blanks if self._stage is _Stage.GAP else []

    def _opens(self, token: int) -> bool:
        """Whether a token at the start of the answer belongs to the opening tag."""
        has_begun = bool(self._opening.text_so_far)
        if self._marker is not None and not has_begun:
            return token == self._marker
        is_part = self._opening.continues(self._pieces[token], token)
        return is_part and (has_begun or not self._inner_allows(token))

    def _is_skipped(self, token: int) -> bool:
        """Whether it is a blank in front of the opening tag; a parser drops it there too."""
        is_blank = self._pieces[token].isspace() and not self._opening.text_so_far
        return is_blank and self._num_blanks < _MAX_BLANKS

    def _inner_allows(self, token: int) -> bool:
        return self._inner is not None and self._inner.allows(token)


class ChannelMask:
    """A ``TokenMask``. Reasoning is messages of the answer: each begins with ``tags.opening``, and
    ``tags.closing`` ends it and begins the next.

    ``budget``: most tokens of all of them together; once it is used up, the message ends, and no other such
    one begins. ``inner``: the mask of the whole answer, without which it is free.
    """

    def __init__(self, vocab: Vocab, tags: ReasoningTags, *, budget: int, inner: TokenMask | None) -> None:
        self._inner = inner
        self._left = budget
        self._opening: list[int] = vocab.tokenize(tags.opening, parse_special=True).tolist()
        self._closing: list[int] = vocab.tokenize(tags.closing, parse_special=True).tolist()
        self._begins_with_marker = self._opening[0] in vocab.marker_tokens
        self._end = self._closing[:1] if self._closing[0] in vocab.marker_tokens else self._closing
        """What ends a message of reasoning; what else is in ``_closing`` may then come in another way."""
        self._is_reasoning = False
        self._num_matched = 0
        """How many tokens of what is waited for have come: of ``_end`` in reasoning, else of ``_opening``."""

    def allows(self, token: int) -> bool:
        return token != self._refused and self._inner_allows(token)

    def apply(self, row: Logits) -> None:
        if self._refused is not None:
            row[self._refused] = -np.inf
        if self._inner is not None:
            self._inner.apply(row)

    def accept(self, token: int) -> Sequence[int]:
        forced = self._take(token)
        has_to_end = self._is_reasoning and self._left <= 0
        # Within a character, the answer cannot go over to something else.
        return (*forced, *self._close()) if has_to_end and self._inner_allows(self._closing[0]) else forced

    @property
    def is_complete(self) -> bool:
        return self._inner is not None and self._inner.is_complete

    @property
    def _refused(self) -> int | None:
        """The token that would make the next message one more of reasoning, when there may be none."""
        is_named_next = self._begins_with_marker and self._num_matched == 1 and not self._is_reasoning
        return self._opening[1] if is_named_next and self._left <= 0 else None

    def _close(self) -> list[int]:
        """The tokens that end the message, accepted; what the inner mask forces behind them is among them."""
        tokens: list[int] = []
        while len(tokens) < len(self._closing):
            token = self._closing[len(tokens)]
            tokens += (token, *self._take(token))
        return tokens

    def _take(self, token: int) -> Sequence[int]:
        forced = () if self._inner is None else self._inner.accept(token)
        for one in (token, *forced):
            self._read(one)
        return forced

    def _read(self, token: int) -> None:
        """Where the answer is after ``token``."""
        awaited = self._end if self._is_reasoning else self._opening
        self._left -= self._is_reasoning and token != awaited[0]
        if token != awaited[self._num_matched]:
            self._num_matched = 0
        self._num_matched += token == awaited[self._num_matched]
        if self._num_matched == len(awaited):
            self._is_reasoning, self._num_matched = not self._is_reasoning, 0

    def _inner_allows(self, token: int) -> bool:
        return self._inner is None or self._inner.allows(token)


class _Tag:
    """A tag, and how much of it has come."""

    def __init__(self, vocab: Vocab, text: str) -> None:
        self._vocab = vocab
        self._text = text.encode()
        self.tokens: list[int] = vocab.tokenize(text, parse_special=True).tolist()
        self.is_single = len(self.tokens) == 1
        self._num_tokens = 0
        self.text_so_far = b""
        """The end of the text that came, as much as may be part of the tag."""

    @property
    def next_token(self) -> int:
        """With tokens as the tokenizer itself makes them: the one that continues the tag."""
        return self.tokens[self._num_tokens]

    def find(self, piece: bytes, token: int) -> bytes | None:
        """The bytes after the tag in ``piece``, the next token's; None: the tag is not complete."""
        self._num_tokens += 1
        if self.is_single:
            return b"" if token == self.tokens[0] else None
        text = self.text_so_far + piece
        place = text.find(self._text)
        if place >= 0:
            return text[place + len(self._text) :]
        sizes = range(min(len(self._text) - 1, len(text)), 0, -1)
        size = next((one for one in sizes if text.endswith(self._text[:one])), 0)
        self.text_so_far = text[len(text) - size :]
        return None

    def continues(self, piece: bytes, token: int) -> bool:
        """Whether all that came and ``piece`` are the tag, or its beginning."""
        if self.is_single:
            return token == self.tokens[0]
        text = self.text_so_far + piece if self.text_so_far else piece.lstrip()
        return bool(text) and (self._text.startswith(text) or text.startswith(self._text))

    def is_overrun_by(self, piece: bytes) -> bool:
        """Whether ``piece`` ends the tag and has more than blanks behind it."""
        left = self._text[len(self.text_so_far) :]
        return not self.is_single and piece.startswith(left) and bool(piece[len(left) :].strip())

    def overrunning_tokens(self) -> Sequence[int]:
        """The tokens that ``is_overrun_by`` is true of. Looked for where the tag has begun only: no token
        holds a whole tag and more, where the tag is not a token itself.
        """
        size = len(self.text_so_far)
        return _overrunning(self._vocab, self._text)[size] if size else ()


_found: weakref.WeakKeyDictionary[Vocab, dict[bytes, list[list[int]]]] = weakref.WeakKeyDictionary()
_found_lock = threading.Lock()


def _overrunning(vocab: Vocab, tag: bytes) -> list[list[int]]:
    """For each number of the tag's bytes that have come, the tokens that end it and bring more than blanks.

    The vocabulary is gone through once for each of the few tags there are.
    """
    with _found_lock:
        of_tags = _found.setdefault(vocab, {})
        if tag not in of_tags:
            last = tag[-1:]
            pieces = [
                (token, piece) for token, piece in enumerate(vocab.special_pieces) if last in piece[:-1]
            ]
            of_tags[tag] = [
                [
                    token
                    for token, piece in pieces
                    if piece.startswith(tag[size:]) and piece[len(tag) - size :].strip()
                ]
                for size in range(len(tag))
            ]
        return of_tags[tag]


def _keep(row: Logits, token: int) -> None:
    """Let nothing but ``token`` come next."""
    logit = row[token]
    row.fill(-np.inf)
    row[token] = logit
