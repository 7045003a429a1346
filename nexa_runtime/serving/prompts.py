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
    at_least = least_tokens(vocab, text)
    if at_least >= max_tokens:
        raise too_long(at_least, max_tokens, param, is_lower_bound=True)


def least_tokens(vocab: Vocab, text: str) -> int:
    """A text has so many tokens or more, as far as its length tells."""
    if vocab.max_piece_bytes is None:
        return 0
    return len(text.encode("utf-8", "surrogatepass")) // vocab.max_piece_bytes


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


def read_prompt(vocab: Vocab, prompt: Prompt, suffix: str | None, *, max_tokens: int) -> Tokens:
    """The tokens of a completion's prompt; with a ``suffix``, of what is to be filled in before it.

    Raises ``InvalidRequestError``.
    """
    for text, param in ((prompt, "prompt"), (suffix, "suffix")):
        if isinstance(text, str):
            check_size(vocab, text, max_tokens=max_tokens, param=param)
    if suffix is None:
        return prompt_tokens(vocab, prompt, param="prompt")
    if min(vocab.fim_prefix, vocab.fim_suffix, vocab.fim_middle) < 0:
        message = "suffix: this model has no tokens for filling in between a prompt and a suffix."
        raise InvalidRequestError(message, param="suffix")
    before = _plain_tokens(vocab, prompt)
    after = vocab.tokenize(suffix, parse_special=False)
    marks = ([vocab.fim_prefix], before, [vocab.fim_suffix], after, [vocab.fim_middle])
    return with_bos(vocab, np.concatenate([np.asarray(part, dtype=np.int32) for part in marks]))


def prompt_text(vocab: Vocab, prompt: Prompt) -> str:
    """A prompt as text, control tokens spelled out."""
    if isinstance(prompt, str):
        return prompt
    return b"".join(vocab.special_pieces[token] for token in prompt).decode("utf-8", "replace")


def _plain_tokens(vocab: Vocab, prompt: Prompt) -> Tokens:
    if isinstance(prompt, str):
        return vocab.tokenize(prompt, parse_special=False)
    return prompt_tokens(vocab, prompt, param="prompt")


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


def check_tokens(
    vocab: Vocab, logit_bias: Sequence[tuple[int, float]], stop_token_ids: Sequence[int]
) -> None:
    """Refuse token ids that the model has not."""
    biased = [token for token, _ in logit_bias]
    for param, tokens in (("logit_bias", biased), ("stop_token_ids", stop_token_ids)):
        for token in tokens:
            if not 0 <= token < vocab.size:
                message = f"{param} names the token {token}; this model has 0 to {vocab.size - 1}."
                raise InvalidRequestError(message, param=param)
