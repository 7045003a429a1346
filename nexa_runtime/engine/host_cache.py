"""Which prefixes lie in host memory, for whom, and who goes when that is full.

Owns the record of the *blocks*: up to ``BLOCK_TOKENS`` tokens of a prefix each, so that what many prefixes
begin with is kept once. A block hangs on the one before it; a lookup walks down from the namespace, and
compares tokens. Pure: it decides and counts, ``engine/runner`` moves the bytes. It knows neither cells nor
ids. ``scheduler`` and ``memory`` call it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from nexa_runtime.engine.kv_cache import MIN_SHARED_TOKENS, Holding, common_prefix, floor_scale
from nexa_runtime.engine.sequence import Forget, KvOperation, Offload, Reload, Sequence, TenantShare, Tokens

BLOCK_TOKENS = 256
MAX_BLOCKS = 1024
"""Few enough to be compared one by one; a quarter of a million tokens."""


@dataclass(slots=True)
class _Block:
    """``tokens``: int32 of shape (n,), 1 ≤ n ≤ ``BLOCK_TOKENS``; with fewer, nothing hangs on it."""

    number: int
    parent: "_Block | None"
    tokens: Tokens
    share: TenantShare
    last_used: int = 0
    children: list["_Block"] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.tokens) == BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class HostMatch:
    """The longest prefix of a sequence that lies in host memory. ``blocks``: (number, tokens used of it).

    ``num_saved``: where its last block ends.
    """

    blocks: tuple[tuple[int, int], ...]
    num_tokens: int
    num_saved: int


class HostCache:
    """``max_bytes`` over all tenants, 0 for none; ``cell_bytes``: what a token takes."""

    def __init__(self, *, max_bytes: int, cell_bytes: int) -> None:
        self._max_tokens = max_bytes // cell_bytes
        self._cell_bytes = cell_bytes
        self._roots: dict[str, _Block] = {}
        """Namespace → a block of no tokens on which its first ones hang."""
        self._blocks: dict[int, _Block] = {}
        self._numbers = count(1)
        self._num_tokens = 0
        self._uses = 0

    @property
    def is_on(self) -> bool:
        """Whether it keeps anything at all."""
        return self._max_tokens >= BLOCK_TOKENS

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks."""
        return self._num_tokens * self._cell_bytes

    def has_room(self, num_tokens: int) -> bool:
        """Whether so many would be kept, and nothing forgotten for them."""
        num_blocks = len(self._blocks) + num_tokens // BLOCK_TOKENS + 1
        fits = self._num_tokens + num_tokens <= self._max_tokens and num_blocks <= MAX_BLOCKS
        return fits and num_tokens >= MIN_SHARED_TOKENS

    def match(self, sequence: Sequence) -> HostMatch:
        """The longest prefix of ``sequence`` in its namespace, all but its last known token at most."""
        blocks, start, end, limit = [], 0, 0, sequence.num_known - 1
        block = self._roots.get(sequence.cache_namespace)
        while block is not None and start < limit:
            block, common = _closest(block, sequence.tokens(start, min(BLOCK_TOKENS, limit - start)))
            if block is None:
                break
            self._touch(block)
            blocks.append((block.number, common))
            end = start + len(block.tokens)
            start += common
            if common < BLOCK_TOKENS:
                break
        return HostMatch(tuple(blocks), start, end)

    def whole_blocks(self, num_tokens: int) -> int:
        """The last end of a block within so many tokens: what is taken back goes on there."""
        return num_tokens // BLOCK_TOKENS * BLOCK_TOKENS

    def reload(self, sequence: Sequence, match: HostMatch, end: int) -> list[KvOperation]:
        """Take tokens of ``match`` back into cells: from those that are computed (``whole_blocks``) up to
        ``end``.
        """
        assert sequence.sequence_id is not None
        operations: list[KvOperation] = []
        for index, (number, common) in enumerate(match.blocks):
            start = index * BLOCK_TOKENS
            num_tokens = min(common, end - start)
            if start >= sequence.num_computed and num_tokens > 0:
                operations.append(Reload(number, sequence.sequence_id, start, num_tokens))
        return operations

    def offload(self, holding: Holding) -> list[KvOperation]:
        """Keep what an id holds, as far as it is computed, not kept already, and finds room."""
        sequence, operations = holding.sequence, list[KvOperation]()
        namespace = sequence.cache_namespace
        block = self._roots.setdefault(namespace, _Block(0, None, np.empty(0, np.int32), sequence.share))
        for start in range(0, holding.num_ready, BLOCK_TOKENS):
            tokens = sequence.tokens(start, min(BLOCK_TOKENS, holding.num_ready - start))
            known, common = _closest(block, tokens)
            if known is None or common < len(tokens):
                is_too_short = holding.num_ready < MIN_SHARED_TOKENS
                if is_too_short or not self._make_room(len(tokens), block, sequence.share, operations):
                    break
                if known is not None and common == len(known.tokens) and known.number in self._blocks:
                    operations.append(self._forget(known))  # the new one has all of it, and more
                known = self._add(block, tokens, sequence.share)
                operations.append(Offload(holding.sequence_id, known.number, start, len(tokens)))
            self._touch(known)
            block = known
        self._drop_empty_roots()
        return operations

    def drop(self, number: int) -> list[KvOperation]:
        """Forget a block that cannot be read, and all that hangs on it."""
        found = [self._blocks[number]] if number in self._blocks else []
        for block in found:  # which grows meanwhile: a chain may be longer than Python recurses
            found += block.children
        operations: list[KvOperation] = [self._forget(block) for block in reversed(found)]
        self._drop_empty_roots()
        return operations

    def update_share(self, share: TenantShare) -> None:
        """From now on this holds for all that its tenant has here."""
        for block in self._blocks.values():
            if block.share.tenant_id == share.tenant_id:
                block.share = share

    def tenant_bytes(self) -> dict[str, int]:
        """Memory by tenant."""
        held: dict[str, int] = {}
        for block in self._blocks.values():
            tenant_id = block.share.tenant_id
            held[tenant_id] = held.get(tenant_id, 0) + len(block.tokens) * self._cell_bytes
        return held

    def check_integrity(self) -> None:
        """Assert that the blocks hang together and are counted right. For tests."""
        assert self._num_tokens == sum(len(one.tokens) for one in self._blocks.values()) <= self._max_tokens
        assert len(self._blocks) <= MAX_BLOCKS
        assert all(root.children for root in self._roots.values())
        reached, waiting = set[int](), list(self._roots.values())
        while waiting:
            block = waiting.pop()
            assert not block.children or block.is_full or not block.number
            assert all(one.parent is block for one in block.children)
            reached |= {one.number for one in block.children}
            waiting += block.children
        assert reached == set(self._blocks)

    def _make_room(
        self, num_tokens: int, parent: _Block, share: TenantShare, operations: list[KvOperation]
    ) -> bool:
        """Forget what must go for a block that is to hang on ``parent``; False if that is not enough, or
        would cost a tenant that has less for its weight than this one then.
        """
        keep = set[int]()
        block: _Block | None = parent
        while block is not None:
            keep.add(block.number)
            block = block.parent
        while self._num_tokens + num_tokens > self._max_tokens or len(self._blocks) >= MAX_BLOCKS:
            held = self.tenant_bytes()
            mine = held.get(share.tenant_id, 0) + num_tokens * self._cell_bytes
            victim = self._victim(keep, held, share.tenant_id)
            if victim is None or (
                victim.share.tenant_id != share.tenant_id
                and held[victim.share.tenant_id] / victim.share.weight < mine / share.weight
            ):
                return False
            operations.append(self._forget(victim))
        return True

    def _victim(self, keep: set[int], held: Mapping[str, int], taker: str) -> _Block | None:
        """The least recently used end of a prefix, of the tenant that has most for its weight. What others
        than ``taker`` have up to their floor stays: it may have left its cells for that.
        """
        shares = {one.share.tenant_id: one.share for one in self._blocks.values()}
        scale = floor_scale((one.cache_floor_cells for one in shares.values()), self._max_tokens)

        def may_go(block: _Block) -> bool:
            tenant_id = block.share.tenant_id
            rest = held[tenant_id] / self._cell_bytes - len(block.tokens)
            return tenant_id == taker or rest >= scale * shares[tenant_id].cache_floor_cells

        ends = [
            one
            for one in self._blocks.values()
            if not one.children and one.number not in keep and may_go(one)
        ]
        return min(
            ends, key=lambda one: (-held[one.share.tenant_id] / one.share.weight, one.last_used), default=None
        )

    def _add(self, parent: _Block, tokens: Tokens, share: TenantShare) -> _Block:
        block = _Block(next(self._numbers), parent, tokens.copy(), share)
        parent.children.append(block)
        self._blocks[block.number] = block
        self._num_tokens += len(tokens)
        return block

    def _forget(self, block: _Block) -> Forget:
        assert block.parent is not None
        block.parent.children.remove(block)
        del self._blocks[block.number]
        self._num_tokens -= len(block.tokens)
        return Forget(block.number)

    def _drop_empty_roots(self) -> None:
        """Namespaces have no bound: a client chooses the scales of its adapters."""
        self._roots = {namespace: root for namespace, root in self._roots.items() if root.children}

    def _touch(self, block: _Block) -> None:
        self._uses += 1
        block.last_used = self._uses


def _closest(parent: _Block, tokens: Tokens) -> tuple[_Block | None, int]:
    """The child that begins most like ``tokens``, and how many tokens that is; None if none does."""
    best, longest = None, 0
    for child in parent.children:
        end = min(len(child.tokens), len(tokens))
        if end > longest:
            common = common_prefix(child.tokens[:end], tokens[:end], above=longest)
            if common > longest:
                best, longest = child, common
    return best, longest
