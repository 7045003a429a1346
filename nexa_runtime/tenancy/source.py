"""Where tenants' limits come from, as the directory sees it.

Owns the protocol that ``vault`` and ``file_source`` implement. A source only fetches: it neither caches nor
judges what it has read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Secret:
    """A tenant's secret as it was read: ``values`` by secret key, not looked at yet."""

    values: Mapping[str, object]
    version: str


class LimitsSource(Protocol):
    """Blocking; called in worker threads, from several at once."""

    @property
    def name(self) -> str:
        """``vault`` or ``file``, for the admin."""

    @property
    def fresh_s(self) -> float:
        """How long an answer is used without asking again, in seconds."""

    @property
    def has_answered(self) -> bool:
        """Whether it has ever given an answer; "there is no such tenant" is one."""

    def fetch(self, tenant_id: str) -> Secret | None:
        """The secret of a tenant whose id is valid; None if there is none or it was deleted.

        Raises ``SourceUnavailableError`` when the source gives no word on it.
        """

    def close(self) -> None:
        """Free what is held."""
