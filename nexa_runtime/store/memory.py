"""How much memory a model is about to take, from its header alone.

Owns the estimate; loading tells the truth. ``show`` prints it, and the server's budget goes by it until the
model is loaded.
"""

from nexa_runtime.store.gguf import GgufHeader

_UBATCH_TOKENS = 512
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
    # A step's logits, its activations, and the mask of every row over all cells.
    per_row = 4 * (header.vocab_size + 8 * width + 3 * inner) + 2 * cells
    overhead = min(_FIXED_OVERHEAD_BYTES + _UBATCH_TOKENS * per_row, _MAX_OVERHEAD_BYTES)
    return header.weights_bytes + kv_bytes + overhead
