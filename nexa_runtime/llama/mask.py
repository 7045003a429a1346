"""What a constraint on a sequence's tokens looks like to whoever samples them.

Owns the protocol alone: ``chat/constraint`` implements it, ``sampler`` asks. The engine knows nothing of
grammars.
"""

from collections.abc import Sequence
from typing import Protocol

from nexa_runtime.llama.context import Logits


class TokenMask(Protocol):
    """Which tokens may come next in one sequence. Lives with the sequence; the engine thread alone calls it.

    Any method may raise ``NexaError`` when the constraint has become too costly to follow; it ends the
    sequence.
    """

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next. Changes nothing; microseconds."""

    def apply(self, row: Logits) -> None:
        """Set the logits of all that may not come next to -inf. ``row``: float32 of shape (vocabulary,)."""

    def accept(self, token: int) -> Sequence[int]:
        """``token``, which is allowed, comes next. The tokens that must follow it, accepted already."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow what was accepted, so that the sequence has ended."""
