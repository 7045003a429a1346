"""Prompts to tokens, and the checks that a prompt and its options fit the model.

Runs in worker threads. ``generation`` and ``embedding`` call it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import ContextLengthError, InvalidRequestError
from nexa_runtime.llama import Vocab

Tokens = npt.NDArray[np.int32]
Prompt = str | Sequence[int]


def check_size(vocab: Vocab, text: str, *, max_tokens: int, param: str) -> None:
    """Refuse a text that is too long whatever its tokens are, without the work of counting them."""
    if vocab.max_piece_bytes is None:
        return
    at_least = len(text.encode("utf-8", "surrogatepass")) // vocab.max_piece_bytes
    if at_least >= max_tokens:
        raise too_long(at_least, max_tokens, param, is_lower_bound=True)


def too_long(
    num_tokens: int, max_tokens: int, param: str, *, is_lower_bound: bool = False
) -> ContextLengthError:
    """``max_tokens``: of prompt and answer together."""
    return ContextLengthError(
        prompt_tokens=num_tokens,
        max_prompt_tokens=max_tokens - 1,
        context_tokens=max_tokens,
        param=param,
        is_lower_bound=is_lower_bound,
    )


def prompt_tokens(vocab: Vocab, prompt: Prompt, *, param: str) -> Tokens:
    """A client's own text or token ids as tokens, at least one. Raises ``InvalidRequestError``."""
    if isinstance(prompt, str):
        tokens = vocab.tokenize(prompt, parse_special=True, add_special=True)
    elif prompt and not 0 <= min(prompt) <= max(prompt) < vocab.size:
        raise InvalidRequestError(f"Token ids of this model are 0 to {vocab.size - 1}.", param=param)
    else:
        tokens = np.array(prompt, dtype=np.int32)
    if not len(tokens):
        raise InvalidRequestError(f"{param} has no tokens.", param=param)
    return tokens


def with_bos(vocab: Vocab, tokens: Tokens) -> Tokens:
    """Some templates write the first token themselves, some leave it to the tokenizer."""
    if not vocab.adds_bos or (len(tokens) and tokens[0] == vocab.bos_token):
        return tokens
    return np.concatenate([np.array([vocab.bos_token], dtype=np.int32), tokens])


def check_bias(vocab: Vocab, logit_bias: Sequence[tuple[int, float]]) -> None:
    for token, _ in logit_bias:
        if not 0 <= token < vocab.size:
            message = f"logit_bias names the token {token}; this model has 0 to {vocab.size - 1}."
            raise InvalidRequestError(message, param="logit_bias")
