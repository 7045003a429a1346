"""A model's vocabulary: text to tokens, tokens to bytes, and which tokens end an answer.

Owns the piece tables, filled once at load, so that no history is ever detokenized again and no token outside
the vocabulary reaches ``llama_token_to_piece``, which would abort. It never touches a
context. Tokenizing is thread-safe and runs off the GIL; ``serving`` calls it from worker threads.
Source: ``llama_tokenize``, ``llama_token_to_piece``, ``llama_vocab_*``.
"""

import ctypes
import re

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import LlamaGuardError
from nexa_runtime.llama.lib import C

Tokens = npt.NDArray[np.int32]

_ATTR_UNKNOWN, _ATTR_CONTROL, _ATTR_USER_DEFINED = 1 << 0, 1 << 3, 1 << 4


class Vocab:
    """Made by ``Model``; valid as long as the model is."""

    def __init__(self, pointer: object) -> None:
        self._pointer = pointer
        self.size: int = C.llama_vocab_n_tokens(pointer)
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
        self.adds_bos: bool = C.llama_vocab_get_add_bos(pointer)
        control = _ATTR_UNKNOWN | _ATTR_CONTROL
        self.control_texts = self._texts(attributes, control)
        """Text of each control token → its id. A user's text must never turn into one of these."""
        self._special_texts = self._texts(attributes, control | _ATTR_USER_DEFINED)
        self._special_pattern = _alternatives(self._special_texts)

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> Tokens:
        """Tokens of ``text``, int32 of shape (n,).

        ``parse_special`` turns the text of control tokens into these tokens: for templates only, never for a
        user's text. ``add_special`` puts the model's first token in front, where it wants one.
        """
        data = text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 16
        tokens = np.empty(capacity, dtype=np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(C.llama_token))
        count = C.llama_tokenize(
            self._pointer, data, len(data), pointer, capacity, add_special, parse_special
        )
        if count < 0:
            raise LlamaGuardError(f"a text of {len(data)} bytes gave more than {capacity} tokens")
        return tokens[:count].copy()

    def tokenize_guarded(self, text: str, guard: str) -> Tokens:
        """Tokens of a rendered template in which ``guard`` breaks up every control token a user wrote.

        The guard characters are dropped; what they broke up stays plain text. Follows llama.cpp's own
        partition of a text by its special tokens (``tokenizer_st_partition``).
        """
        if guard not in text:
            return self.tokenize(text, parse_special=True)
        parts: list[Tokens] = []
        for part in self._special_pattern.split(text) if self._special_pattern else [text]:
            if (token := self._special_texts.get(part)) is not None:
                parts.append(np.array([token], dtype=np.int32))
            elif part:
                parts.append(self.tokenize(part.replace(guard, ""), parse_special=False))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def _table(self, *, special: bool) -> list[bytes]:
        buffer = ctypes.create_string_buffer(256)
        table: list[bytes] = []
        for token in range(self.size):
            size = C.llama_token_to_piece(self._pointer, token, buffer, len(buffer), 0, special)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = C.llama_token_to_piece(self._pointer, token, buffer, len(buffer), 0, special)
            table.append(ctypes.string_at(buffer, size))
        return table

    def _texts(self, attributes: list[int], mask: int) -> dict[str, int]:
        return {
            self.special_pieces[token].decode("utf-8", "replace"): token
            for token, attribute in enumerate(attributes)
            if attribute & mask and self.special_pieces[token]
        }


def _alternatives(texts: dict[str, int]) -> re.Pattern[str] | None:
    if not texts:
        return None
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(re.escape(text) for text in longest_first) + ")")
