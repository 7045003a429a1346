"""llama.cpp behind typed, guarded Python: the only room that imports ``llama_cpp``."""

from nexa_runtime.llama.context import Batch, Context, ContextParams, DecodeStatus
from nexa_runtime.llama.model import Model
from nexa_runtime.llama.sampler import Sampler, SamplingParams, sample_greedy
from nexa_runtime.llama.vocab import Vocab

__all__ = [
    "Batch",
    "Context",
    "ContextParams",
    "DecodeStatus",
    "Model",
    "Sampler",
    "SamplingParams",
    "Vocab",
    "sample_greedy",
]
