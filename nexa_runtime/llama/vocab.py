"""A model's vocabulary: text to tokens, tokens to bytes, and which tokens end an answer.

Owns the piece tables, filled once at load, so that no history is ever detokenized again and no token outside
the vocabulary reaches ``llama_token_to_piece``, which would abort. It never touches a
context. Tokenizing is thread-safe and runs off the GIL; ``serving`` calls it from worker threads.
Source: ``llama_tokenize``, ``llama_token_to_piece``, ``llama_vocab_*``.
"""

import ctypes
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import LlamaGuardError
from nexa_runtime.llama.lib import C

Tokens = npt.NDArray[np.int32]

_ATTR_UNKNOWN, _ATTR_CONTROL, _ATTR_USER_DEFINED, _ATTR_BYTE = 1 << 0, 1 << 3, 1 << 4, 1 << 5

_LEAD = "\x02"
_MAX_CALL_CHARS = 8192
"""Longest text handed to llama.cpp at once."""
_MAX_PATTERN_DEPTH = 32


class Vocab:
    """Made by ``Model``; valid as long as the model is."""

    def __init__(self, pointer: object) -> None:
        self.pointer = pointer
        self.size: int = C.llama_vocab_n_tokens(pointer)
        kind = C.llama_vocab_type(pointer)
        self._is_bpe = kind == C.LLAMA_VOCAB_TYPE_BPE
        attributes = [C.llama_vocab_get_attr(pointer, token) for token in range(self.size)]
        self.pieces = self._table(special=False)
        """Bytes of each token as text; control tokens are empty."""
        self.special_pieces = self._table(special=True)
        """Bytes of each token with control tokens spelled out."""
        self.eog_tokens = frozenset(
            token for token in range(self.size) if C.llama_vocab_is_eog(pointer, token)
        )
        """Every token that ends a generation."""
        self.bos_token: int = C.llama_vocab_bos(pointer)
        """First token of a text, or -1."""
        self.eos_token: int = C.llama_vocab_eos(pointer)
        self.sep_token: int = C.llama_vocab_sep(pointer)
        """Stands between two texts, or -1."""
        self.adds_bos: bool = C.llama_vocab_get_add_bos(pointer)
        self.adds_eos: bool = C.llama_vocab_get_add_eos(pointer)
        self.adds_sep: bool = C.llama_vocab_get_add_sep(pointer)
        self.fim_prefix: int = C.llama_vocab_fim_pre(pointer)
        """Stands before the text in front of a gap, or -1; so the next two, after it and in the gap."""
        self.fim_suffix: int = C.llama_vocab_fim_suf(pointer)
        self.fim_middle: int = C.llama_vocab_fim_mid(pointer)
        control = _ATTR_UNKNOWN | _ATTR_CONTROL
        marked = {
            text: token
            for text, token in self._texts(attributes, _ATTR_USER_DEFINED).items()
            if text.startswith("<") and text.endswith(">")
        }
        self.special_texts: Mapping[str, int] = marked | self._texts(attributes, _ATTR_CONTROL)
        """Text → id of the tokens that no constraint on text may take for text."""
        self.control_texts: Mapping[str, int] = marked | self._texts(attributes, control)
        """Text of each control token or marker → its id. A user's text must never turn into one of these."""
        self._special = _Texts(self._texts(attributes, control | _ATTR_USER_DEFINED))
        self._defined = _Texts(self._texts(attributes, _ATTR_USER_DEFINED))
        """Those that llama.cpp takes for tokens in any text, ``parse_special`` or not."""
        self.marker_tokens = frozenset(
            token
            for token, attribute in enumerate(attributes)
            if attribute & control or (attribute & _ATTR_USER_DEFINED and self._is_tag(token))
        )
        """Tokens that are no text to a grammar: control tokens, and others written like ``<tag>``."""
        letter, lead = (self._call(text, parse_special=False, add_special=False) for text in ("a", _LEAD))
        adds_space = b"".join(self.pieces[token] for token in letter) != b"a"
        self._lead: list[int] = lead.tolist() if adds_space else []
        """What ``_LEAD`` becomes, where the tokenizer puts a space in front of every text."""
        self.max_piece_bytes: int | None = None
        """No token stands for more bytes of a text; None where a tokenizer may drop some (wordpiece,
        unigram).
        """
        if kind in (C.LLAMA_VOCAB_TYPE_BPE, C.LLAMA_VOCAB_TYPE_SPM):
            self.max_piece_bytes = max(map(len, self.special_pieces))
        self.has_all_bytes = kind != C.LLAMA_VOCAB_TYPE_SPM or (
            sum(bool(attribute & _ATTR_BYTE) for attribute in attributes) >= 256
        )
        """Whether any text can be tokenized; llama.cpp ends the process where a byte has no token."""

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> Tokens:
        """Tokens of ``text``, int32 of shape (n,).

        ``parse_special`` turns the text of control tokens into these tokens: for templates only, never for a
        user's text. ``add_special`` adds the model's first and last token, where it wants them.
        """
        if len(text) <= _MAX_CALL_CHARS:
            return self._call(text, parse_special=parse_special, add_special=add_special)
        parts = list(self._parts(text, self._special if parse_special else self._defined))
        if add_special:
            ends = self._call("", parse_special=False, add_special=True)
            num_first = int(self.adds_bos)
            parts = [ends[:num_first], *parts, ends[num_first:]]
        return np.concatenate(parts)

    def tokenize_guarded(self, text: str, guard: str) -> Tokens:
        """Tokens of a rendered template in which ``guard`` breaks up every special token a user wrote.

        The guard characters are dropped. What stood on either side of one is tokenized apart: llama.cpp takes
        user-defined tokens for tokens wherever their letters stand together, even with ``parse_special``
        off (``tokenizer_st_partition``).
        """
        if guard not in text:
            return self.tokenize(text, parse_special=True)
        parts = list(self._parts(text, self._special, guard))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def _parts(self, text: str, special: "_Texts", guard: str = "") -> Iterator[Tokens]:
        """A text cut at its special tokens, as llama.cpp does it (``tokenizer_st_partition``), but in one
        pass.

        llama.cpp's own takes time with the square of their number.
        """
        for part in special.split(text):
            if (token := special.tokens.get(part)) is not None:
                yield np.array([token], dtype=np.int32)
            elif guard and guard in part:
                first, *others = part.split(guard)
                yield from (self._plain(first), *map(self._continued, others))
            elif part:
                yield self._plain(part)

    def _continued(self, text: str) -> Tokens:
        """Tokens of a text that goes on within a word."""
        if not self._lead or not text:
            return self._plain(text)
        tokens = self._plain(_LEAD + text)
        if tokens[: len(self._lead)].tolist() == self._lead:
            return tokens[len(self._lead) :]
        return self._plain(text)

    def _plain(self, text: str) -> Tokens:
        """Tokens of a text without special ones, however long a word in it is.

        The pre-tokenizers of many BPE models run on ``std::regex``, which recurses once per character of a
        match and overflows the stack somewhere beyond 16,000 (8 MB): such texts are cut, at a space where
        there is one.
        """
        if not self._is_bpe or len(text) <= _MAX_CALL_CHARS:
            return self._call(text, parse_special=False, add_special=False)
        parts = []
        start = 0
        while start < len(text):
            end = start + _MAX_CALL_CHARS
            if end < len(text):
                space = text.rfind(" ", start + _MAX_CALL_CHARS // 2, end)
                end = space if space > 0 and not text[space - 1].isspace() else end
            parts.append(self._call(text[start:end], parse_special=False, add_special=False))
            start = end
        return np.concatenate(parts)

    def _call(self, text: str, *, parse_special: bool, add_special: bool) -> Tokens:
        data = text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 16
        tokens = np.empty(capacity, dtype=np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(C.llama_token))
        count = C.llama_tokenize(self.pointer, data, len(data), pointer, capacity, add_special, parse_special)
        if count < 0:
            raise LlamaGuardError(f"a text of {len(data)} bytes gave more than {capacity} tokens")
        return tokens[:count].copy()

    def _table(self, *, special: bool) -> list[bytes]:
        buffer = ctypes.create_string_buffer(256)
        table: list[bytes] = []
        for token in range(self.size):
            size = C.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = C.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
            table.append(ctypes.string_at(buffer, size))
        return table

    def _is_tag(self, token: int) -> bool:
        piece = self.special_pieces[token]
        return piece.startswith(b"<") and piece.endswith(b">")

    def _texts(self, attributes: list[int], mask: int) -> dict[str, int]:
        return {
            self.special_pieces[token].decode("utf-8", "replace"): token
            for token, attribute in enumerate(attributes)
            if attribute & mask and self.special_pieces[token]
        }


class _Texts:
    """Texts that stand for a token each. ``tokens``: their ids."""

    def __init__(self, tokens: dict[str, int]) -> None:
        self.tokens = tokens
        self._pattern = re.compile(f"({either(tokens)})") if tokens else None

    def split(self, text: str) -> list[str]:
        """The text in parts, each of these texts one of its own."""
        return self._pattern.split(text) if self._pattern else [text]


def either(texts: Collection[str], depth: int = 0) -> str:
    """A pattern for the longest of ``texts`` at a place. What several of them begin with is read once: some
    vocabularies have thousands that begin alike, and a client may write what they begin with a million times.
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        if text:
            groups.setdefault(text[0], []).append(text)
    parts: list[str] = []
    for group in groups.values():
        if depth == _MAX_PATTERN_DEPTH:
            parts += map(re.escape, sorted(group, key=len, reverse=True))
            continue
        pairs = zip(min(group), max(group), strict=False)
        start = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        rests = {text[len(start) :] for text in group}
        parts.append(re.escape(start) + ("" if rests == {""} else either(rests, depth + 1)))
    return f"(?:{'|'.join(parts)})" + ("?" if "" in texts else "")
