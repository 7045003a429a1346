"""Log-probabilities on the wire, in the two shapes of chat and completions.

Owns how a token becomes text there and how offsets go on over the chunks of a stream. It never computes a
probability; the writers call it. Source: OpenAI's API; ``token_id:`` as vLLM has it.
"""

import codecs
from collections.abc import Iterable, Sequence

from nexa_runtime.llama import TokenLogprobs

LOWEST = -9999.0
"""OpenAI's stand-in for the logarithm of nothing; JSON has no infinity."""


class TokenTexts:
    """How tokens are written. ``pieces``: the bytes of each token of the vocabulary. ``as_ids``: write
    ``token_id:5`` in place of a token's text.
    """

    def __init__(self, pieces: Sequence[bytes], *, as_ids: bool = False) -> None:
        self._pieces = pieces
        self._as_ids = as_ids

    def piece(self, token: int) -> bytes:
        """A token's bytes; a token that the table does not have has none."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def text(self, token: int) -> str:
        """A token as text; part of a character becomes U+FFFD."""
        return f"token_id:{token}" if self._as_ids else self.piece(token).decode("utf-8", "replace")


def chat_logprobs(tokens: Iterable[TokenLogprobs], texts: TokenTexts) -> dict[str, object]:
    """A chat choice's ``logprobs``."""
    content = [
        {
            **_entry(one.token, one.logprob, texts),
            "top_logprobs": [_entry(token, logprob, texts) for token, logprob in one.best],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """One completion choice's ``logprobs``, a part at a time."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def body(self, tokens: Iterable[TokenLogprobs]) -> dict[str, object]:
        """The next tokens. ``text_offset``: characters of the choice's text that are whole before each."""
        texts: list[str] = []
        logprobs: list[float] = []
        best: list[dict[str, float]] = []
        offsets: list[int] = []
        for one in tokens:
            texts.append(self._texts.text(one.token))
            logprobs.append(_finite(one.logprob))
            best.append(self._best(one))
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._texts.piece(one.token)))
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": best, "text_offset": offsets}

    def _best(self, one: TokenLogprobs) -> dict[str, float]:
        """The likeliest and the chosen one; of tokens with one text the likeliest counts."""
        found: dict[str, float] = {}
        for token, logprob in (*one.best, (one.token, one.logprob)):
            found.setdefault(self._texts.text(token), _finite(logprob))
        return found


def _entry(token: int, logprob: float, texts: TokenTexts) -> dict[str, object]:
    return {"token": texts.text(token), "logprob": _finite(logprob), "bytes": list(texts.piece(token))}


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST
