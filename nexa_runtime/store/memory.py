"""How much memory a model is about to take, from its header alone.

Owns the estimate, which is rather too high than too low. ``show`` prints it, and the server's budget goes by
it until llama.cpp has planned the model (``llama/planning``), when it is tried for the first time.
"""

from nexa_runtime.store.gguf import GgufHeader

_UBATCH_TOKENS = 512
_MAX_OUTPUTS = 16
"""Rows of a step that have logits, with the default settings: two for each slot."""
_BYTES_PER_TOKEN = 512
"""What one token of the vocabulary takes in the tokenizer's tables, as measured."""
_FIXED_OVERHEAD_BYTES = 32 * 1024**2
_MAX_OVERHEAD_BYTES = 4 * 1024**3


def memory_estimate(
    header: GgufHeader,
    context_tokens: int,
    slots: int,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
) -> int:
    """Bytes that the weights of one file, the KV cells and the buffers of a step are about to take.

    ``context_tokens``: of each slot. Of a split model, add the sizes of the other parts.
    """
    cells = context_tokens * slots
    kv_bytes = cells * (header.kv_cell_bytes(type_k, type_v) or 0)
    width = header.number(f"{header.architecture}.embedding_length") or 0
    inner = header.number(f"{header.architecture}.feed_forward_length") or 4 * width
    # A step's activations, the mask of every row over all cells, and the logits twice: computed, and kept.
    per_row = 4 * (8 * width + 3 * inner) + 2 * cells
    per_token = 2 * 4 * _MAX_OUTPUTS + _BYTES_PER_TOKEN
    overhead = _FIXED_OVERHEAD_BYTES + _UBATCH_TOKENS * per_row + header.vocab_size * per_token
    overhead = min(overhead, _MAX_OVERHEAD_BYTES)
    return header.weights_bytes + kv_bytes + overhead
