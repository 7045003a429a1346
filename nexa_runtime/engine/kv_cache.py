"""Which sequence id and how many KV cells belong to whom.

Owns the free sequence ids and the cell accounting of one context. Pure: it counts, ``engine/runner`` frees
the real cells. There are more ids than slots, so that sequences which do not run can keep their KV.

A sequence is given an id only when every cell that it can ever need is free, so that the pool cannot run full
under a running one.
"""

import heapq


class KvCache:
    """Ids ``0 … num_ids-1`` and ``num_cells`` cells."""

    def __init__(self, *, num_ids: int, num_cells: int) -> None:
        self.num_cells = num_cells
        self._num_ids = num_ids
        self._free_ids = list(range(num_ids))
        self._reserved: dict[int, int] = {}

    @property
    def num_reserved_cells(self) -> int:
        """Cells promised to sequences."""
        return sum(self._reserved.values())

    @property
    def num_used_ids(self) -> int:
        """Ids that belong to a sequence."""
        return len(self._reserved)

    def reserve(self, num_cells: int) -> int | None:
        """The lowest free id with ``num_cells`` cells, or None if there is no id or no room."""
        if not self._free_ids or self.num_reserved_cells + num_cells > self.num_cells:
            return None
        sequence_id = heapq.heappop(self._free_ids)
        self._reserved[sequence_id] = num_cells
        return sequence_id

    def release(self, sequence_id: int) -> None:
        """Take an id and its cells back."""
        del self._reserved[sequence_id]
        heapq.heappush(self._free_ids, sequence_id)

    def check_integrity(self, used: dict[int, int]) -> None:
        """Assert that ``used`` (id → cells computed) are the ids in use, within what they reserved."""
        assert used.keys() == self._reserved.keys()
        assert all(cells <= self._reserved[sequence_id] for sequence_id, cells in used.items())
        assert sorted([*self._free_ids, *used]) == list(range(self._num_ids))
        assert self.num_reserved_cells <= self.num_cells
