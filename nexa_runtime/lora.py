"""Which LoRA adapters an answer is computed with: names and scales, as one value.

Owns the form of a name, the bounds of a choice, and the value that travels from a request down to llama.cpp.
It never reads a file: ``store/catalog`` names what a model has, ``llama/model`` loads it. Pure.
"""

from collections.abc import Mapping

AdapterSet = tuple[tuple[str, float], ...]
"""Names and scales, sorted, no name twice and no scale of 0: equal sets compute equal answers."""

NO_ADAPTERS: AdapterSet = ()

AdapterChoice = tuple[tuple[str, float | None], ...]
"""What somebody asks for: names, each once, and scales; None: the adapter's own."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

MAX_CHOSEN = 4
"""Adapters that are on at once."""

MAX_SCALE = 4.0
"""Either way. Beyond, what an adapter adds grows without sense, up to keys and values that are no numbers."""


def adapter_set(scales: Mapping[str, float]) -> AdapterSet:
    """The value of such a choice; an adapter with a scale of 0 is not on."""
    return tuple(sorted((name, scale) for name, scale in scales.items() if scale))


def adapters_text(adapters: AdapterSet) -> str:
    """For logs and headers, such as ``formal:0.5,legal:1``."""
    return ",".join(f"{name}:{scale:g}" for name, scale in adapters)
