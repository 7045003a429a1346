"""A GGUF model in memory: loading, metadata, and what its KV cells cost.

Owns the ``llama_model`` pointer. It never creates contexts (``context.py``) and holds no state of requests.
``serving/pool`` loads models, off the event loop.
Source: ``llama_model_load_from_file``, ``llama_model_meta_*``.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_runtime.errors import LlamaGuardError, ModelFileError
from nexa_runtime.llama.lib import C, recent_errors
from nexa_runtime.llama.vocab import Vocab
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet

_GGUF_MAGIC = b"GGUF"
_MAX_GGUF_VERSION = 3
_F16_BYTES = 2
_LOAD_WITHOUT_MAP = 0
"""llama.cpp's ``LLAMA_LOAD_MODE_NONE``; the binding lacks its name."""
_WITH_SOFTMAX = ("qwen3", "qwen3vl")


class Model:
    """A loaded model. ``close`` after every context made from it is closed."""

    def __init__(self, pointer: object, path: Path, *, gpu_layers: int) -> None:
        self.pointer = pointer
        self.path = path
        self.is_on_gpu = gpu_layers != 0 and bool(C.llama_supports_gpu_offload())
        """Whether layers, and so their KV cells, live in a GPU's memory."""
        vocab = C.llama_model_get_vocab(pointer)
        if C.llama_vocab_type(vocab) == C.LLAMA_VOCAB_TYPE_NONE:
            raise ModelFileError(path, "it has no tokenizer")
        if C.llama_model_has_encoder(pointer):
            raise ModelFileError(path, "it has an encoder; only decoder models are served")
        self.vocab = Vocab(vocab)
        if not self.vocab.has_all_bytes:
            raise ModelFileError(path, "its tokenizer has no tokens for single bytes")
        self.embedding_size: int = C.llama_model_n_embd_out(pointer)
        """Length of an embedding."""
        self.num_layers: int = C.llama_model_n_layer(pointer)
        self.context_tokens: int = C.llama_model_n_ctx_train(pointer)
        """Longest sequence the model was made for, in tokens."""
        if self.context_tokens < 1:
            raise ModelFileError(path, "its context length is out of range")
        self.size_bytes: int = C.llama_model_size(pointer)
        self.num_parameters: int = C.llama_model_n_params(pointer)
        self.has_one_state = bool(C.llama_model_is_recurrent(pointer) or C.llama_model_is_hybrid(pointer))
        """Whether a sequence's memory is one piece, of which no part can be dropped."""
        self.description = self._description()
        self.metadata = self._metadata()
        """All scalar metadata as text, by GGUF key."""
        self._adapters: list[tuple[Any, float]] = []
        """Those that always hold, and their scales."""
        self._named_adapters: dict[str, Any] = {}

    @classmethod
    def load(cls, path: Path, *parts: Path, gpu_layers: int = -1, is_dry_run: bool = False) -> "Model":
        """Map a model into memory: its one file, or all its parts in order.

        ``is_dry_run``: without weights and, in every context made from it, without cells and buffers:
        nothing can be computed. Raises ``ModelFileError`` with the reason.
        """
        for part in (path, *parts):
            check_is_gguf(part)
        params = C.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        if is_dry_run:
            params.no_alloc, params.load_mode = True, _LOAD_WITHOUT_MAP
        recent_errors(clear=True)
        # The parts have names of their own here, so that llama.cpp cannot find them by itself.
        names = (ctypes.c_char_p * (1 + len(parts)))(*(os.fsencode(part) for part in (path, *parts)))
        if parts:
            pointer = C.llama_model_load_from_splits(names, len(names), params)
        else:
            pointer = C.llama_model_load_from_file(names[0], params)
        if not pointer:
            reasons = recent_errors(clear=True)
            raise ModelFileError(path, reasons[0] if reasons else "llama.cpp gave no reason")
        try:
            return cls(pointer, path, gpu_layers=gpu_layers)
        except BaseException:
            C.llama_model_free(pointer)
            raise

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that the file carries, if any."""
        return self.metadata.get("tokenizer.chat_template")

    @property
    def tool_template(self) -> str | None:
        """Another one, for conversations with tools, which some files carry."""
        return self.metadata.get("tokenizer.chat_template.tool_use")

    @property
    def rerank_template(self) -> str | None:
        """How a reranker wants a query and a document: a text with ``{query}`` and ``{document}`` in it."""
        return self.metadata.get("tokenizer.chat_template.rerank")

    @property
    def can_generate(self) -> bool:
        """Whether it is made for answers, and not only for vectors or scores."""
        return not (self.is_encoder or self.is_reranker)

    @property
    def is_encoder(self) -> bool:
        """Whether the model only reads (bert and its kin): it has no memory of what came before."""
        return self.metadata.get(f"{self.architecture}.attention.causal") == "false"

    @property
    def pooling_type(self) -> int:
        """llama.cpp's ``LLAMA_POOLING_TYPE_*`` of the file; the mean where it names none."""
        number = int(self.metadata.get(f"{self.architecture}.pooling_type", 0))
        return number if number > 0 else C.LLAMA_POOLING_TYPE_MEAN

    @property
    def is_reranker(self) -> bool:
        """Whether pooling gives scores and not a vector."""
        return bool(self.pooling_type == C.LLAMA_POOLING_TYPE_RANK)

    @property
    def num_scores(self) -> int:
        """Scores that a reranker gives to each input."""
        return int(C.llama_model_n_cls_out(self.pointer))

    @property
    def has_probabilities(self) -> bool:
        """Whether a reranker's scores are probabilities of its labels and add up to 1: llama.cpp ends these
        architectures in a softmax (``build_pooling``).
        """
        return self.architecture in _WITH_SOFTMAX

    @property
    def architecture(self) -> str:
        """Such as ``llama``."""
        return self.metadata.get("general.architecture", "")

    @property
    def name(self) -> str:
        """What the file calls itself, or its file name without the ending."""
        return self.metadata.get("general.name") or self.path.stem

    @property
    def kv_cell_bytes(self) -> int:
        """Memory of one KV cell over all layers, in bytes, for F16 keys and values, by the sizes of its
        first.
        """
        arch = self.architecture
        heads: int = max(C.llama_model_n_head(self.pointer), 1)
        kv_heads: int = max(C.llama_model_n_head_kv(self.pointer), 1)
        head_size: int = max(C.llama_model_n_embd(self.pointer) // heads, 1)
        key = int(self.metadata.get(f"{arch}.attention.key_length", head_size))
        value = int(self.metadata.get(f"{arch}.attention.value_length", head_size))
        return self.num_layers * kv_heads * (key + value) * _F16_BYTES

    def add_adapter(self, path: Path, scale: float) -> None:
        """Put a LoRA adapter on the weights, for every context that is made from now on.

        Raises as ``name_adapter``.
        """
        self._adapters.append((self._load_adapter(path), scale))

    def name_adapter(self, name: str, path: Path) -> None:
        """Have a LoRA adapter at hand, for ``Context.use_adapters``. Before any context is made: llama.cpp
        makes its graphs as large as all adapters need.

        Raises ``ModelFileError`` when it is not one for this model. A file that is built to do harm aborts
        the process instead: ``serving/probe`` tries each one before it comes here.
        Source: ``llama_adapter_lora_init``.
        """
        self._named_adapters[name] = self._load_adapter(path)

    def _load_adapter(self, path: Path) -> Any:
        try:
            check_is_gguf(path)
        except ModelFileError as error:
            raise self._adapter_error(path, error.reason) from None
        recent_errors(clear=True)
        adapter = C.llama_adapter_lora_init(self.pointer, os.fsencode(path))
        if not adapter:
            reasons = recent_errors(clear=True) or ["llama.cpp gave no reason"]
            # Such as: llama_adapter_lora_init_from_file_ptr: failed to apply lora adapter: what is wrong
            raise self._adapter_error(path, reasons[-1].rpartition("lora adapter: ")[2])
        if C.llama_adapter_get_alora_n_invocation_tokens(adapter):
            raise self._adapter_error(path, "it is for parts of a prompt only (aLoRA)")
        return adapter

    def apply_adapters(self, context: object, named: AdapterSet = NO_ADAPTERS) -> None:
        """Make a context of this model, given by its pointer, compute with those of its adapters that always
        hold, with ``named`` ones, and with no other. Raises ``LlamaGuardError``.
        """
        for name, _ in named:
            if name not in self._named_adapters:
                raise LlamaGuardError(f"the adapter {name}, which the model has not")
        chosen = [*self._adapters, *((self._named_adapters[name], scale) for name, scale in named)]
        count = len(chosen)
        adapters = (C.llama_adapter_lora_p_ctypes * count)(*(adapter for adapter, _ in chosen))
        scales = (ctypes.c_float * count)(*(scale for _, scale in chosen))
        if C.llama_set_adapters_lora(context, adapters, count, scales):
            raise LlamaGuardError("adapters that llama.cpp does not take")

    def close(self) -> None:
        """Free the weights, and the adapters on them. A second call does nothing."""
        if self.pointer:
            C.llama_model_free(self.pointer)
            self.pointer = None

    def _adapter_error(self, path: Path, reason: str) -> ModelFileError:
        return ModelFileError(self.path, f"its LoRA adapter {path.name} cannot be used ({reason})")

    def _description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        C.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _metadata(self) -> dict[str, str]:
        keys, values = C.llama_model_meta_key_by_index, C.llama_model_meta_val_str_by_index
        count = C.llama_model_meta_count(self.pointer)
        return {_read(keys, self.pointer, i): _read(values, self.pointer, i) for i in range(count)}


def check_is_gguf(path: Path) -> None:
    """Raise ``ModelFileError`` unless ``path`` is a readable file that starts like a GGUF model."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ModelFileError(path, "it is not a regular file")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise ModelFileError(path, "there is no such file") from None
    except IsADirectoryError:
        raise ModelFileError(path, "it is a folder, not a GGUF file") from None
    except OSError as error:
        raise ModelFileError(path, error.strerror or "it cannot be read") from None
    if head[:4] != _GGUF_MAGIC or len(head) < 8:
        raise ModelFileError(path, "it is not a GGUF file")
    version = int.from_bytes(head[4:8], "little")
    if not 1 <= version <= _MAX_GGUF_VERSION:
        raise ModelFileError(path, f"GGUF version {version} is not known here")


def _read(function: Callable[..., int], pointer: object, index: int) -> str:
    buffer = ctypes.create_string_buffer(1024)
    size = function(pointer, index, buffer, len(buffer))
    if size >= len(buffer):
        buffer = ctypes.create_string_buffer(size + 1)
        size = function(pointer, index, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if size >= 0 else ""
