"""How many threads a context computes with, after it was made.

Owns the two calls and their guard. It never decides how many; ``serving/calibration`` does, before the
context serves. Source: ``llama_set_n_threads``, ``llama_n_threads``, ``llama_n_threads_batch``.
"""

from dataclasses import dataclass

from nexa_runtime.errors import LlamaGuardError
from nexa_runtime.llama.context import Context
from nexa_runtime.llama.lib import C


@dataclass(frozen=True, slots=True)
class Threads:
    """``decode``: for steps of one row; ``prompt``: for every larger one, several answers included."""

    decode: int
    prompt: int


def threads_of(context: Context) -> Threads:
    """What a context computes with now."""
    return Threads(C.llama_n_threads(context.pointer), C.llama_n_threads_batch(context.pointer))


def set_threads(context: Context, threads: Threads) -> None:
    """From the next step on a context computes with these. Raises ``LlamaGuardError`` for none at all."""
    if min(threads.decode, threads.prompt) < 1:
        raise LlamaGuardError(f"{threads.decode} and {threads.prompt} threads, not at least 1")
    C.llama_set_n_threads(context.pointer, threads.decode, threads.prompt)
