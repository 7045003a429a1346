"""llama.cpp behind typed, guarded Python: the only room that imports ``llama_cpp``."""

from nexa_runtime.llama.context import (
    MAX_SEQUENCE_IDS,
    Batch,
    Context,
    ContextParams,
    DecodeStatus,
    kv_cell_bytes,
)
from nexa_runtime.llama.embedding import MAX_INPUTS, EmbeddingContext, normalised
from nexa_runtime.llama.model import Model
from nexa_runtime.llama.planning import MemoryPlan, free_gpu_bytes, plan_memory
from nexa_runtime.llama.sampler import Sampler, SamplingParams, sample_greedy
from nexa_runtime.llama.vocab import Vocab

__all__ = [
    "MAX_INPUTS",
    "MAX_SEQUENCE_IDS",
    "Batch",
    "Context",
    "ContextParams",
    "DecodeStatus",
    "EmbeddingContext",
    "MemoryPlan",
    "Model",
    "Sampler",
    "SamplingParams",
    "Vocab",
    "free_gpu_bytes",
    "kv_cell_bytes",
    "normalised",
    "plan_memory",
    "sample_greedy",
]
