"""Which tokens the KV cache holds, for whom, and what may be reused.

Owns the sequence ids, the cells of one context, and the record of what each id holds. Pure: it decides and
counts, ``engine/runner`` carries its operations out on the real cells. There are more ids than slots, so that
a sequence which has ended can stay *resident*: its KV waits for a later prompt that begins the same way.

Cells are counted one by one: a cell that several ids share (a copied prefix) is counted once and is free when
the last of them lets go. Prefixes are matched within a namespace only, by comparing tokens: with at most 256
ids a scan is enough.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from nexa_runtime.engine.sequence import (
    CopyPrefix,
    KvOperation,
    Sequence,
    SequenceState,
    TenantShare,
    Truncate,
)

Cells = npt.NDArray[np.int32]

MIN_SHARED_TOKENS = 16
"""A shorter prefix is not worth waiting for, keeping in host memory, or fetching from there."""


class Reuse(Enum):
    """What a model's memory can give up.

    ANY_PREFIX: each position stands for itself, so any common prefix can be kept and shared. OWN_PREFIX: so
    it is, but each id has cells of its own (split KV): the id of an ended sequence is taken over and cut
    back, and nothing is shared. WHOLE: the state is one piece (recurrent and hybrid models), so it is of use
    only to a prompt that continues all of it, once its sequence has ended.
    """

    ANY_PREFIX = "any prefix"
    OWN_PREFIX = "own prefix"
    WHOLE = "whole"


@dataclass(slots=True)
class Holding:
    """What one id holds: the first ``num_cells`` tokens of ``sequence``, which lives or has ended."""

    sequence_id: int
    sequence: Sequence
    cells: Cells
    num_cells: int
    last_used: int

    @property
    def is_resident(self) -> bool:
        """Whether its sequence has ended, so that it may be evicted."""
        return self.sequence.state is SequenceState.FINISHED

    @property
    def is_pinned(self) -> bool:
        """Whether it is a public prefix: every namespace may share it, adapters permitting; never evicted."""
        return self.is_resident and self.sequence.is_public

    @property
    def num_ready(self) -> int:
        """Tokens that are computed, not only planned."""
        return min(self.num_cells, self.sequence.num_computed) if not self.is_resident else self.num_cells


@dataclass(frozen=True, slots=True)
class Match:
    """The longest usable prefix of a sequence: the first ``num_tokens`` of ``holding``."""

    holding: Holding | None
    num_tokens: int


class KvCache:
    """Ids ``0 … num_ids-1`` and ``num_cells`` cells."""

    def __init__(self, *, num_ids: int, num_cells: int, reuse: Reuse = Reuse.ANY_PREFIX) -> None:
        self.num_cells = num_cells
        self.num_ids = num_ids
        self._reuse = reuse
        self._free_ids = list(reversed(range(num_ids)))
        self._free_cells = np.arange(num_cells - 1, -1, -1, dtype=np.int32)
        self._num_free_cells = num_cells
        self._num_holders = np.zeros(num_cells, dtype=np.int16)
        self._holdings: dict[int, Holding] = {}
        self._uses = 0

    @property
    def num_free_cells(self) -> int:
        """Cells that nobody holds."""
        return self._num_free_cells

    @property
    def num_pinned_cells(self) -> int:
        """Cells of public prefixes."""
        return sum(one.num_cells for one in self._holdings.values() if one.is_pinned)

    @property
    def num_resident_ids(self) -> int:
        """Ids whose sequence has ended."""
        return sum(holding.is_resident for holding in self._holdings.values())

    def holdings(self) -> Iterable[Holding]:
        """All that is held."""
        return self._holdings.values()

    def match(self, sequence: Sequence) -> Match:
        """The longest prefix of ``sequence`` that is computed already, in its namespace. Changes nothing.

        At most all but the last known token: that one is computed again, for its logits.
        """
        best = Match(None, 0)
        limit = sequence.num_known - 1
        for holding in self._holdings.values():
            if not self._may_match(sequence, holding):
                continue
            end = min(limit, holding.num_ready)
            if end <= best.num_tokens:
                continue
            mine, theirs = sequence.tokens(0, end), holding.sequence.tokens(0, end)
            common = common_prefix(mine, theirs, above=best.num_tokens)
            if common > best.num_tokens and self._is_worth(holding, common):
                best = Match(holding, common)
        return best

    def _may_match(self, sequence: Sequence, holding: Holding) -> bool:
        is_own = holding.sequence.cache_namespace == sequence.cache_namespace
        if self.is_shared:
            return is_own or (holding.is_pinned and holding.sequence.adapters == sequence.adapters)
        return is_own and holding.is_resident

    def _is_worth(self, holding: Holding, num_tokens: int) -> bool:
        """Without sharing, a match takes the whole id: for little of it a free id is better."""
        if self._reuse is Reuse.OWN_PREFIX:
            return not self._free_ids or 2 * num_tokens >= holding.num_cells
        return self.is_shared or num_tokens == holding.num_ready

    @property
    def is_shared(self) -> bool:
        """Whether a live sequence's prefix can be used by another."""
        return self._reuse is Reuse.ANY_PREFIX

    @property
    def has_free_id(self) -> bool:
        """Whether an id is free."""
        return bool(self._free_ids)

    def takes_over(self, match: Match) -> bool:
        """Whether a resident's id is used on, and nothing is copied: all it holds is matched, or must be."""
        source = match.holding
        if source is None or not source.is_resident or source.is_pinned:
            return False
        return self._reuse is Reuse.OWN_PREFIX or source.num_cells == match.num_tokens

    def attach(self, sequence: Sequence, match: Match) -> list[KvOperation]:
        """Give ``sequence`` an id that holds its matched prefix. An id is free, or the match is resident.

        With no id free, the resident that is matched is cut back and taken over.
        """
        source = match.holding
        if source is not None and (self.takes_over(match) or not self._free_ids):
            assert source.is_resident
            assert not source.is_pinned
            operations: list[KvOperation] = []
            if source.num_cells > match.num_tokens:
                self._let_go(source, match.num_tokens)
                operations.append(Truncate(source.sequence_id, match.num_tokens))
            source.sequence = sequence
            self._touch(source)
            sequence.sequence_id = source.sequence_id
            sequence.num_computed = match.num_tokens
            return operations
        sequence_id = self._free_ids.pop()
        holding = Holding(sequence_id, sequence, np.empty(max(256, sequence.num_known), np.int32), 0, 0)
        self._holdings[sequence_id] = holding
        self._touch(holding)
        sequence.sequence_id = sequence_id
        if source is None:
            return []
        shared = source.cells[: match.num_tokens]
        self._num_holders[shared] += 1
        _store(holding, shared)
        self._touch(source)
        sequence.num_computed = match.num_tokens
        return [CopyPrefix(source.sequence_id, sequence_id, match.num_tokens)]

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Take free cells for ``num_tokens`` more tokens of a sequence; there must be as many."""
        assert num_tokens <= self._num_free_cells
        self._num_free_cells -= num_tokens
        holding = self.holding_of(sequence)
        if num_tokens == 1 and holding.num_cells < len(holding.cells):  # as for every token of an answer
            cell = self._free_cells[self._num_free_cells]
            self._num_holders[cell] = 1
            holding.cells[holding.num_cells] = cell
            holding.num_cells += 1
        else:
            taken = self._free_cells[self._num_free_cells : self._num_free_cells + num_tokens]
            self._num_holders[taken] = 1
            _store(holding, taken)
        self._touch(holding)

    def shrink(self, sequence: Sequence, num_tokens: int) -> list[KvOperation]:
        """Keep only the first ``num_tokens`` tokens of a sequence."""
        holding = self.holding_of(sequence)
        self._let_go(holding, num_tokens)
        return [Truncate(holding.sequence_id, num_tokens)]

    def drop(self, holding: Holding) -> list[KvOperation]:
        """Forget what an id holds and free it."""
        self._let_go(holding, 0)
        del self._holdings[holding.sequence_id]
        self._free_ids.append(holding.sequence_id)
        if not holding.is_resident:
            holding.sequence.sequence_id = None
            holding.sequence.num_computed = 0
        return [Truncate(holding.sequence_id, 0)]

    def holding_of(self, sequence: Sequence) -> Holding:
        """What a living sequence holds; it has an id."""
        assert sequence.sequence_id is not None
        return self._holdings[sequence.sequence_id]

    def release(self, sequence: Sequence) -> list[KvOperation]:
        """A sequence has ended: what it computed stays resident; its id is freed if that is nothing."""
        holding = self.holding_of(sequence)
        if not sequence.num_computed:
            return self.drop(holding)
        operations: list[KvOperation] = []
        if holding.num_cells > sequence.num_computed:
            operations = self.shrink(sequence, sequence.num_computed)
        sequence.sequence_id = None
        return operations

    def evictable(self, requester: TenantShare, *, breaks_floors: bool = False) -> list[Holding]:
        """Residents in the order in which they go when ``requester`` needs room.

        First those of tenants that hold more than their share of the cells (by weight, among the tenants that
        hold any), then the requester's own, then those of others above their floor; least recently used first
        in each. Others at their floor come last of all, and only with ``breaks_floors``.
        """
        held = self.tenant_cells()
        weights = {one.sequence.share.tenant_id: one.sequence.share.weight for one in self._holdings.values()}
        total = sum(weights.values())
        floors = {
            one.sequence.share.tenant_id: one.sequence.share.cache_floor_cells
            for one in self._holdings.values()
        }
        scale = floor_scale(floors.values(), self.num_cells)

        def rank(holding: Holding) -> int | None:
            share = holding.sequence.share
            cells = held[share.tenant_id]
            if share.tenant_id != requester.tenant_id and cells <= share.cache_floor_cells * scale:
                return 3 if breaks_floors else None
            if cells * total > self.num_cells * share.weight:
                return 0
            return 1 if share.tenant_id == requester.tenant_id else 2

        ranked = [
            (place, holding.last_used, holding)
            for holding in self.residents()
            if (place := rank(holding)) is not None
        ]
        return [holding for *_, holding in sorted(ranked, key=lambda entry: entry[:2])]

    def residents(self) -> list[Holding]:
        """What has ended and may go: public prefixes may not."""
        return [one for one in self._holdings.values() if one.is_resident and not one.is_pinned]

    def above_floors(self) -> list[Holding]:
        """Residents without which their tenants still hold what is promised to them."""
        held = self.tenant_cells()
        return [
            one
            for one in self.residents()
            if held[(share := one.sequence.share).tenant_id] - self._num_held(one) >= share.cache_floor_cells
        ]

    def num_resident_cells(self) -> int:
        """Cells that residents hold and nobody who lives; public prefixes do not count."""
        is_idle = self._num_holders > 0
        for holding in self._holdings.values():
            if not holding.is_resident or holding.is_pinned:
                is_idle[holding.cells[: holding.num_cells]] = False
        return int(is_idle.sum())

    def num_reclaimable(self, holdings: Iterable[Holding]) -> int:
        """Cells that are free once all of ``holdings`` are dropped: those that nobody else holds."""
        cells = [holding.cells[: holding.num_cells] for holding in holdings]
        if not cells:
            return 0
        counts = np.bincount(np.concatenate(cells), minlength=self.num_cells)
        return int(((counts > 0) & (counts == self._num_holders)).sum())

    def tenant_cells(self) -> dict[str, float]:
        """Cells by tenant; one that n ids hold counts 1/n for each."""
        return self.held_and_idle()[0]

    def held_and_idle(self) -> tuple[dict[str, float], dict[str, float]]:
        """``tenant_cells``, and those of residents alone: every cell is looked at, so this is done once."""
        held: dict[str, float] = {}
        idle: dict[str, float] = {}
        for holding in self._holdings.values():
            tenant_id, num_held = holding.sequence.share.tenant_id, self._num_held(holding)
            held[tenant_id] = held.get(tenant_id, 0.0) + num_held
            if holding.is_resident:
                idle[tenant_id] = idle.get(tenant_id, 0.0) + num_held
        return held, idle

    def _num_held(self, holding: Holding) -> float:
        return float((1.0 / self._num_holders[holding.cells[: holding.num_cells]]).sum())

    def check_integrity(self, living: Iterable[Sequence]) -> None:
        """Assert that ids, cells and holders agree with each other and with the living sequences that have
        KV.
        """
        held = {sequence.sequence_id: sequence for sequence in living}
        for sequence_id, holding in self._holdings.items():
            assert holding.sequence_id == sequence_id
            if holding.is_resident:
                assert holding.num_cells > 0
            else:
                assert held.pop(sequence_id) is holding.sequence
                assert holding.num_cells == holding.sequence.num_computed
        assert not held
        assert sorted([*self._free_ids, *self._holdings]) == list(range(self.num_ids))
        counts = np.zeros(self.num_cells, dtype=np.int16)
        for holding in self._holdings.values():
            np.add.at(counts, holding.cells[: holding.num_cells], 1)
        assert (counts == self._num_holders).all()
        free = self._free_cells[: self._num_free_cells]
        assert len(np.unique(free)) == self._num_free_cells == int((counts == 0).sum())
        assert (counts[free] == 0).all()

    def _let_go(self, holding: Holding, keep: int) -> None:
        cells = holding.cells[keep : holding.num_cells]
        self._num_holders[cells] -= 1
        freed = cells[self._num_holders[cells] == 0]
        self._free_cells[self._num_free_cells : self._num_free_cells + len(freed)] = freed
        self._num_free_cells += len(freed)
        holding.num_cells = keep

    def _touch(self, holding: Holding) -> None:
        self._uses += 1
        holding.last_used = self._uses


def floor_scale(floors: Iterable[int], num_tokens: int) -> float:
    """The part of each floor that is kept: all of them together no more than half of ``num_tokens``, so that
    those who compute have the rest.
    """
    return min(1.0, num_tokens / 2 / max(sum(floors), 1))


def common_prefix(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32], *, above: int = 0) -> int:
    """Length of the longest common prefix of two arrays of the same length; one that is not longer than
    ``above`` may be told as 0.
    """
    if len(left) <= above or left[above] != right[above]:
        return 0  # nearly all of them, when many prompts arrive together
    differs = left != right
    first = int(differs.argmax())
    return first if differs[first] else len(differs)


def _store(holding: Holding, cells: Cells) -> None:
    end = holding.num_cells + len(cells)
    if end > len(holding.cells):
        grown = np.empty(max(end, 2 * len(holding.cells)), dtype=np.int32)
        grown[: holding.num_cells] = holding.cells[: holding.num_cells]
        holding.cells = grown
    holding.cells[holding.num_cells : end] = cells
    holding.num_cells = end
