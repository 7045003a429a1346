"""The byte-level BPE of the demo model, trained on its own corpus.

Owns the vocabulary, the split pattern (exactly llama.cpp's "qwen2") and the encoding of marked spans.
It never reads a GGUF; export.py writes the vocabulary there and check.py proves that llama.cpp cuts
text the same way.

Merges are learned with letters kept apart from the sign in front of them. A word then has the same
tokens after a space, after a quote and at the start of an answer, which is what lets a tiny model copy
words it has never seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_model.chat import SPECIAL_TOKENS, Span

VOCAB_SIZE = 2048
QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LEARNING_PATTERN = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(pattern: str) -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_tokenizer(conversations: Iterable[list[Span]]) -> Tokenizer:
    """Learn the merges from plain corpus text; the ChatML markers stay out of the words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _byte_level(_LEARNING_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without_markers(spans) for spans in conversations), trainer)
    tokenizer.pre_tokenizer = _byte_level(QWEN2_PATTERN)
    return tokenizer


def _without_markers(spans: list[Span]) -> str:
    text = "".join(span.text for span in spans)
    for marker in SPECIAL_TOKENS:
        text = text.replace(marker, "\n")
    return text


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode_spans(tokenizer: Tokenizer, conversations: list[list[Span]]) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each conversation, and for each id whether it is learned."""
    flat = [span.text for spans in conversations for span in spans]
    pieces = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    encoded: list[tuple[list[int], list[bool]]] = []
    for spans in conversations:
        ids: list[int] = []
        learned: list[bool] = []
        for span in spans:
            piece = next(pieces).ids
            ids.extend(piece)
            learned.extend([span.learned] * len(piece))
        encoded.append((ids, learned))
    return encoded


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens by id and merges in order, in the byte alphabet that GGUF files use."""
    model = json.loads(tokenizer.to_str())["model"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, merges
