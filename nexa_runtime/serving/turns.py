"""One at a time for each tenant, and nothing kept of a tenant that has nothing to do.

Owns the locks, from the first who wants one to the last. ``dispatcher`` uses it on the event loop.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio


@dataclass(slots=True)
class _Turn:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    num_users: int = 0
    """Who holds it, and who waits for it."""


class Turns:
    """``async with turns.of(tenant_id)``: nobody else is inside for that tenant."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def of(self, tenant_id: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it inside."""
        turn = self._turns.setdefault(tenant_id, _Turn())
        turn.num_users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.num_users -= 1
            if not turn.num_users:
                del self._turns[tenant_id]
