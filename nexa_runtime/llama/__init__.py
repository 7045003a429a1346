"""llama.cpp behind typed, guarded Python: the only room that imports ``llama_cpp``."""

from nexa_runtime.llama.context import (
    ATTENTION_TILE_ROWS,
    MAX_SEQUENCE_IDS,
    Batch,
    Context,
    ContextParams,
    DecodeStatus,
    kv_cell_bytes,
)
from nexa_runtime.llama.dry import prepare_dry
from nexa_runtime.llama.embedding import (
    MAX_INPUTS,
    EmbeddingContext,
    check_scores,
    max_input_tokens,
    normalised,
)
from nexa_runtime.llama.mask import TokenMask
from nexa_runtime.llama.model import Model
from nexa_runtime.llama.planning import MemoryPlan, free_gpu_bytes, gpu_memory, plan_memory
from nexa_runtime.llama.sampler import Sampler, sample_greedy
from nexa_runtime.llama.sampling_params import (
    MAX_DRY_BREAKERS,
    SAMPLER_NAMES,
    Choice,
    SamplingParams,
    TokenLogprobs,
    canonical_samplers,
)
from nexa_runtime.llama.state import SavedRange, restore_range, save_range
from nexa_runtime.llama.vocab import Vocab

__all__ = [
    "ATTENTION_TILE_ROWS",
    "MAX_DRY_BREAKERS",
    "MAX_INPUTS",
    "MAX_SEQUENCE_IDS",
    "SAMPLER_NAMES",
    "Batch",
    "Choice",
    "Context",
    "ContextParams",
    "DecodeStatus",
    "EmbeddingContext",
    "MemoryPlan",
    "Model",
    "Sampler",
    "SamplingParams",
    "SavedRange",
    "TokenLogprobs",
    "TokenMask",
    "Vocab",
    "canonical_samplers",
    "check_scores",
    "free_gpu_bytes",
    "gpu_memory",
    "kv_cell_bytes",
    "max_input_tokens",
    "normalised",
    "plan_memory",
    "prepare_dry",
    "restore_range",
    "sample_greedy",
    "save_range",
]
