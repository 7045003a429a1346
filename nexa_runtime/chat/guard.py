"""The guard that keeps a user's text from turning into control tokens.

Owns what is put into a text, and which characters serve for it. ``template`` and ``pairs`` guard what a
client wrote; whoever tokenizes drops the guard again.

The guard: inside every control token or marker that a *client's* text spells out, its tools and options too,
one character that Unicode reserves for internal use is put. Whoever tokenizes the prompt drops it and leaves
what it broke up as plain text (``llama.Vocab.tokenize_guarded``); tokens written by the template itself stay
whole. So do those that a dialect writes into a message, each behind a ``MARK``, which is dropped here.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama.vocab import either

REPLACEMENT = "\ufffd"
"""What stands for a ``MARK`` that a client sent."""

_GUARDS = [chr(code) for code in range(0xFDD1, 0xFDF0)]
"""Unicode's noncharacters, without ``MARK``: no text that is interchanged has them."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """``text`` with ``guard`` inside every control token or marker that came from a user."""

    text: str
    guard: str

    @property
    def plain(self) -> str:
        """The text as a person reads it, without the guard."""
        return self.text.replace(self.guard, "")


class ControlTexts:
    """The texts of a model's control tokens and markers, found in what a client wrote."""

    def __init__(self, control_texts: Collection[str]) -> None:
        # A lookahead finds overlapping control texts too; a text of one character cannot be broken up.
        # Behind a mark, which is dropped, the text is left whole.
        texts = {text for text in control_texts if len(text) > 1}
        whole, broken = (either(texts), f"|(?={either(texts)})(?P<first>.)") if texts else ("", "")
        self._pattern = re.compile(f"{MARK}(?P<whole>{whole}|){broken}", re.DOTALL)

    def guarded(self, text: str, guard: str) -> str:
        """The text with ``guard`` inside each of them."""

        def changed(match: re.Match[str]) -> str:
            whole: str | None = match["whole"]
            return match["first"] + guard if whole is None else whole

        return self._pattern.sub(changed, text)


def unused_guards(texts: Sequence[str], count: int, *, param: str) -> list[str]:
    """So many characters that serve as guards and that no text has. Raises ``InvalidRequestError``."""
    unused = (guard for guard in _GUARDS if not any(guard in text for text in texts))
    found = list(islice(unused, count))
    if len(found) < count:
        raise InvalidRequestError(f"{param}: has every character that Unicode reserves.", param=param)
    return found
