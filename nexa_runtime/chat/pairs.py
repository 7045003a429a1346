"""A query and a document to the prompt that a reranker was trained on.

Owns how llama.cpp's files write such a template, a text with ``{query}`` and ``{document}`` in it, and that
what stands in for these is guarded like a user's message (``guard``). It never tokenizes. ``serving`` calls
it from worker threads. Source: llama.cpp's ``tokenizer.chat_template.rerank``.
"""

import re
from collections.abc import Collection

from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.chat.guard import REPLACEMENT, ControlTexts, RenderedPrompt, unused_guards

_SLOT = re.compile(r"\{(query|document)\}")


class PairTemplate:
    """One model's template. ``control_texts``: the texts of its control tokens and markers."""

    def __init__(self, source: str, *, control_texts: Collection[str] = ()) -> None:
        self._parts = _SLOT.split(source)  # a text, the name of a slot, a text, and so on
        self._control = ControlTexts(control_texts)

    def render(self, query: str, document: str) -> RenderedPrompt:
        """The prompt. Raises ``InvalidRequestError``."""
        texts = {"query": query.replace(MARK, REPLACEMENT), "document": document.replace(MARK, REPLACEMENT)}
        (guard,) = unused_guards([*texts.values(), *self._parts], 1, param="documents")
        guarded = {name: self._control.guarded(text, guard) for name, text in texts.items()}
        parts = [guarded[part] if index % 2 else part for index, part in enumerate(self._parts)]
        return RenderedPrompt("".join(parts), guard)
