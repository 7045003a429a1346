"""What memory a model is about to take, as llama.cpp plans it, and what the GPUs have free.

Owns the dry run: the model is loaded without its weights and the context made without its cells, and the
sizes are read off llama.cpp's log, for no function of its C API gives them. Nothing is ever computed here. A
file that nobody has tried may abort the process on the way, so ``serving/probe`` calls this in its child.
Source: ``llama_model_params.no_alloc``, ``ggml_backend_dev_memory``.

The plan is a sum over all devices: without memory behind them llama.cpp logs the buffers of weights and of
cells as 0 bytes, and only their sums as they are. A repacked copy of the weights (``CPU_REPACK``) does not
count: the pages of the file that it stands for are not needed any more.
"""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nexa_runtime.llama.context import Context, ContextParams
from nexa_runtime.llama.embedding import EmbeddingContext, max_input_tokens
from nexa_runtime.llama.lib import C, captured_log
from nexa_runtime.llama.model import Model

_CELLS = re.compile(r"llama_(?:kv|memory|dsv4)\w*: .*(?<!buffer )size = +([\d.]+) MiB")
_BUFFERS = re.compile(r".*(?:output|compute) buffer size = +([\d.]+) MiB")

_BYTES_PER_TOKEN = 512
"""What one token of the vocabulary takes, in llama.cpp's tables and in ours, as measured."""

_DEVICE_TYPE_GPU = 1
"""ggml's ``GGML_BACKEND_DEVICE_TYPE_GPU``: one with memory of its own."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on all devices together: of the weights, the tokenizer, the KV cells or states, and a step's
    buffers.
    """

    weights_bytes: int
    vocab_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.vocab_bytes + self.kv_bytes + self.compute_bytes


def plan_memory(paths: Sequence[Path], params: ContextParams) -> MemoryPlan:
    """What a model (one file, or its parts in order) and a context of these sizes would take.

    A model that cannot generate has a context for its longest input instead. Blocks for as long as the
    tokenizer takes to load. Raises ``ModelFileError``.
    """
    model = Model.load(*paths, gpu_layers=0, is_dry_run=True)
    try:
        with captured_log() as lines:
            context = _make_context(model, params)
        context.close()
        return MemoryPlan(
            weights_bytes=model.size_bytes,
            vocab_bytes=_BYTES_PER_TOKEN * model.vocab.size,
            kv_bytes=_sum_bytes(_CELLS, lines),
            compute_bytes=_sum_bytes(_BUFFERS, lines),
        )
    finally:
        model.close()


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Of all GPUs together, in bytes."""

    free_bytes: int
    total_bytes: int


def gpu_memory() -> GpuMemory | None:
    """The memory of all GPUs together; None where there is none."""
    library = C._lib
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    devices = map(library.ggml_backend_dev_get, range(library.ggml_backend_dev_count()))
    gpus = [device for device in devices if library.ggml_backend_dev_type(device) == _DEVICE_TYPE_GPU]
    free_bytes = total_bytes = 0
    for gpu in gpus:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        library.ggml_backend_dev_memory(gpu, ctypes.byref(free), ctypes.byref(total))
        free_bytes += free.value
        total_bytes += total.value
    return GpuMemory(free_bytes, total_bytes) if gpus else None


def free_gpu_bytes() -> int | None:
    """Free memory of all GPUs together; None where there is none."""
    memory = gpu_memory()
    return None if memory is None else memory.free_bytes


def _make_context(model: Model, params: ContextParams) -> Context | EmbeddingContext:
    if not model.can_generate:
        return EmbeddingContext(model, max_tokens=max_input_tokens(model), num_threads=params.num_threads)
    return Context(model, params)


def _sum_bytes(pattern: re.Pattern[str], lines: Sequence[str]) -> int:
    matches = filter(None, map(pattern.match, lines))
    return sum(round(float(match[1]) * 2**20) for match in matches)
