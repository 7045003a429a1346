"""What the tests of the sampler share: a vocabulary that is only a size, and llama.cpp's own chain."""

import ctypes
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nexa_runtime.llama import Vocab
from nexa_runtime.llama.lib import C

VOCAB = 5000

Row = npt.NDArray[np.float32]


def toy_vocab(size: int = VOCAB) -> Vocab:
    """Enough of a vocabulary for every sampler but DRY."""
    return cast(Vocab, SimpleNamespace(size=size, pointer=None))


def logits(seed: int, scale: float = 3.0, size: int = VOCAB) -> Row:
    """A row of random logits."""
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


class LlamaChain:
    """A chain of llama.cpp's samplers over every token, in the order given."""

    def __init__(self, *samplers: Any) -> None:
        self.chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for sampler in samplers:
            C.llama_sampler_chain_add(self.chain, sampler)

    def sample(self, row: Row) -> int:
        """Choose from all tokens of ``row``."""
        size = len(row)
        data = (C.llama_token_data * size)(*((token, float(row[token]), 0.0) for token in range(size)))
        array = C.llama_token_data_array(data=data, size=size, selected=-1, sorted=False)
        C.llama_sampler_apply(self.chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, *tokens: int) -> None:
        """Tell the samplers with a memory."""
        for token in tokens:
            C.llama_sampler_accept(self.chain, int(token))

    def close(self) -> None:
        """Free it and its samplers."""
        C.llama_sampler_free(self.chain)
