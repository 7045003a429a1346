"""Which dialect a model writes.

Owns the list of families and its order. It reads a template's source and never renders it. ``serving`` calls
it when a model is loaded.
"""

from collections.abc import Mapping

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.command_r import CommandR, CommandR7B
from nexa_runtime.chat.dialects.deepseek import DeepSeek, DeepSeekR1
from nexa_runtime.chat.dialects.dsml import DeepSeekDsml
from nexa_runtime.chat.dialects.gemma import FunctionGemma, Gemma4
from nexa_runtime.chat.dialects.generic import Generic
from nexa_runtime.chat.dialects.glm import Glm
from nexa_runtime.chat.dialects.granite import Granite
from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.dialects.hermes import Hermes
from nexa_runtime.chat.dialects.kimi import Kimi
from nexa_runtime.chat.dialects.llama3 import Llama3
from nexa_runtime.chat.dialects.minimax import MiniMax
from nexa_runtime.chat.dialects.mistral import Mistral, MistralArgs
from nexa_runtime.chat.dialects.pythonic import Lfm2, Pythonic
from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder, SeedOss

_ORDER: tuple[type[Dialect], ...] = (
    Harmony,
    Gemma4,
    FunctionGemma,
    Kimi,
    MiniMax,
    SeedOss,
    Qwen3Coder,
    Glm,
    DeepSeekDsml,
    DeepSeekR1,
    DeepSeek,
    MistralArgs,
    Mistral,
    CommandR7B,
    CommandR,
    Granite,
    Hermes,
    Lfm2,
    Pythonic,
    Llama3,
    Generic,
)
"""The most particular first: the first that fits is chosen, and the last fits all."""

DIALECTS: dict[str, type[Dialect]] = {kind.name: kind for kind in _ORDER}


def choose(template: str, special_texts: Mapping[str, int], override: str | None = None) -> Dialect:
    """The dialect of a model with this chat template; ``override`` names one instead.

    Raises ``ValueError`` if there is none of that name.
    """
    if override is None:
        kind = next(kind for kind in _ORDER if kind.fits(template))
    elif override in DIALECTS:
        kind = DIALECTS[override]
    else:
        raise ValueError(f"there is no dialect {override!r}; there are {', '.join(DIALECTS)}")
    return kind(special_texts, template)
