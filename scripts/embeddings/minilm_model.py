"""all-MiniLM-L6-v2 without llama.cpp: its weights, its tokenizer for English, its forward pass in numpy.

Owns the names that the files of the model use, and the reference that a server's embeddings are held against.
It never writes a file and knows nothing of GGUF. Run by scripts/embeddings/minilm.
"""

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_MAX_WORD_CHARS = 100
"""A longer word is unknown."""

_erf = np.frompyfunc(math.erf, 1, 1)


class MiniLM:
    """The model in ``folder``, as Hugging Face lays it out. Raises ``ValueError`` for one of another kind."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        known = (
            self.config["model_type"] == "bert"
            and self.config["hidden_act"] == "gelu"
            and self.config["position_embedding_type"] == "absolute"
            and [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
            and json.loads((folder / "tokenizer_config.json").read_text())["do_lower_case"]
        )
        if not known:
            raise ValueError(f"{folder} is not an uncased BERT with gelu and mean pooling")
        self.weights = read_safetensors(folder / "model.safetensors")
        self.tokens = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        """Text of each token, as WordPiece writes it: the second part of a word begins with ``##``."""
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if not len(self.tokens) == len(self.ids) == self.config["vocab_size"]:
            raise ValueError(f"{folder}: the vocabulary does not have {self.config['vocab_size']} tokens")

    def tokenize(self, text: str) -> list[int]:
        """Ids of ``text`` between the first and the last token. For English: CJK is not cut up."""
        ids = [self.ids["[CLS]"]]
        for word in _words(text):
            ids += self._pieces(word)
        return [*ids, self.ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.ids["[UNK]"]]
        if len(word) > _MAX_WORD_CHARS:
            return unknown
        pieces: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if (piece := self.ids.get(prefix + word[start:end])) is not None:
                    pieces.append(piece)
                    start = end
                    break
            else:
                return unknown
        return pieces

    def embed(self, ids: list[int]) -> Floats:
        """The embedding of one text, of length 1."""
        x = self.weights["embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm("embeddings", x + self.weights["embeddings.token_type_embeddings.weight"][0])
        for layer in range(self.config["num_hidden_layers"]):
            block = f"encoder.layer.{layer}"
            attended = self._linear(f"{block}.attention.output.dense", self._attention(block, x))
            x = self._norm(f"{block}.attention.output", x + attended)
            inner = _gelu(self._linear(f"{block}.intermediate.dense", x))
            x = self._norm(f"{block}.output", x + self._linear(f"{block}.output.dense", inner))
        mean = x.mean(axis=0)
        unit: Floats = mean / np.linalg.norm(mean)
        return unit

    def _attention(self, block: str, x: Floats) -> Floats:
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self._linear(f"{block}.attention.self.{name}", x).reshape(len(x), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        joined: Floats = (shares @ v).swapaxes(0, 1).reshape(x.shape)
        return joined

    def _linear(self, name: str, x: Floats) -> Floats:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        weight, bias = (self.weights[f"{name}.LayerNorm.{kind}"] for kind in ("weight", "bias"))
        normed: Floats = centred / spread * weight + bias
        return normed


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The F32 tensors of a file, by name. Raises ``ValueError`` for weights of another type."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data, "<f4", (end - begin) // 4, start + begin)
            tensors[name] = values.reshape(entry["shape"])
        elif entry["dtype"] != "I64":  # the positions, which are only counted up
            raise ValueError(f"{path}: {name} is {entry['dtype']}, not F32")
    return tensors


def _words(text: str) -> list[str]:
    """Lower case, no accents, and each punctuation mark a word of its own."""
    plain = "".join(
        character
        for character in unicodedata.normalize("NFD", text).lower()
        if unicodedata.category(character) != "Mn"
    )
    return "".join(
        f" {character} " if _is_punctuation(character) else character for character in plain
    ).split()


def _is_punctuation(character: str) -> bool:
    is_ascii_sign = "!" <= character <= "~" and not character.isalnum()
    return is_ascii_sign or unicodedata.category(character).startswith("P")


def _gelu(x: Floats) -> Floats:
    gelu: Floats = x * (1 + _erf(x / math.sqrt(2)).astype(np.float32)) / 2
    return gelu
