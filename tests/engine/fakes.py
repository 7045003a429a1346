"""What stands in for llama.cpp where the scheduler alone is tested."""

import zlib
from itertools import count

from nexa_runtime.engine.kv_cache import Reuse
from nexa_runtime.engine.sequence import (
    MAX_DECODE_ROWS,
    CopyPrefix,
    Forget,
    Offload,
    Reload,
    Sequence,
    StepPlan,
    StepResult,
    Truncate,
)
from nexa_runtime.lora import AdapterSet

END = 0


def next_tokens(sequence: Sequence, *, is_constrained: bool = False) -> tuple[tuple[int, ...], bool]:
    """What a model would do: a token that depends on all before it and on the adapters, now and then the end.

    ``is_constrained``: now and then others must follow it, or nothing may, which is told beside it.
    """
    checksum = zlib.crc32(sequence.tokens(0, sequence.num_known).data, len(sequence.adapters))
    token = END if checksum % 11 == 0 else 1 + checksum % 50_000
    if not is_constrained or checksum % 3:
        return (token,), False
    num_forced = checksum // 3 % (MAX_DECODE_ROWS + 10)
    return (token, *((checksum >> 8) % 40_000 + 1 + at for at in range(num_forced))), checksum % 17 == 0


Cell = tuple[int, AdapterSet]
"""A token, and the adapters that it was computed with."""


def cells_of(sequence: Sequence, start: int, count: int) -> list[Cell]:
    return [(token, sequence.adapters) for token in sequence.tokens(start, count).tolist()]


class FakeRunner:
    """Does to its own KV cells what llama.cpp would, checks every plan, and answers with ``next_token``."""

    def __init__(
        self,
        num_cells: int = 100_000,
        reuse: Reuse = Reuse.ANY_PREFIX,
        *,
        is_thorough: bool = True,
        constrained: frozenset[str] = frozenset(),
    ) -> None:
        """``is_thorough``: compare every cell at every step, which takes time for long sequences.
        ``constrained``: tenants whose answers are.
        """
        self.num_cells = num_cells
        self.reuse = reuse
        self.is_thorough = is_thorough
        self.constrained = constrained
        self.num_computed_rows = 0
        self.cells: dict[int, list[tuple[int, Cell]]] = {}
        """Id → its cells, each with a number; a copied prefix has the same numbers."""
        self._numbers = count()
        self.saved: dict[int, tuple[int, list[Cell]]] = {}
        """Block of host memory → where it begins, and what it holds."""
        self.num_reloaded = 0

    def apply(self, plan: StepPlan) -> None:
        for operation in plan.operations:
            if isinstance(operation, Truncate):
                cells = self.cells.setdefault(operation.sequence_id, [])
                if self.reuse is Reuse.WHOLE:  # such a state can only be dropped, or left as it is
                    assert operation.num_tokens in (0, len(cells))
                del cells[operation.num_tokens :]
                continue
            assert self.reuse is Reuse.ANY_PREFIX
            match operation:
                case CopyPrefix(source_id, target_id, num_tokens):
                    source = self.cells[source_id]
                    assert num_tokens <= len(source)
                    assert not self.cells.get(target_id)
                    self.cells[target_id] = source[:num_tokens]
                case Offload(sequence_id, block, start, num_tokens):
                    kept = self.cells[sequence_id][start : start + num_tokens]
                    assert len(kept) == num_tokens
                    assert block not in self.saved
                    self.saved[block] = start, [token for _, token in kept]
                case Reload(block, sequence_id, start, num_tokens):
                    begin, tokens = self.saved[block]
                    cells = self.cells.setdefault(sequence_id, [])
                    assert begin == start == len(cells)
                    assert num_tokens <= len(tokens)
                    # llama.cpp needs cells for all of a block, however little of it is kept.
                    assert not self.is_thorough or self.num_used() + len(tokens) <= self.num_cells
                    cells += [(next(self._numbers), token) for token in tokens[:num_tokens]]
                    self.num_reloaded += num_tokens
                case Forget(block):
                    del self.saved[block]

    def execute(self, plan: StepPlan, failed: dict[int, Exception] | None = None) -> StepResult:
        self.apply(plan)
        tokens = {}
        complete = set()
        assert len({chunk.sequence.adapters for chunk in plan.chunks}) <= 1
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.sequence_id is not None
            cells = self.cells.setdefault(sequence.sequence_id, [])
            assert len(cells) == chunk.start
            if self.is_thorough:
                assert [cell for _, cell in cells] == cells_of(sequence, 0, chunk.start)
            cells += [(next(self._numbers), cell) for cell in cells_of(sequence, chunk.start, chunk.count)]
            self.num_computed_rows += chunk.count
            if chunk.wants_token:
                is_constrained = sequence.share.tenant_id in self.constrained
                tokens[sequence.key], is_complete = next_tokens(sequence, is_constrained=is_constrained)
                if is_complete:
                    complete.add(sequence.key)
        assert not plan.num_padding or self.reuse is Reuse.ANY_PREFIX
        assert not self.is_thorough or self.num_used() + plan.num_padding <= self.num_cells
        elapsed_s = 0.03 + 0.002 * plan.num_rows
        return StepResult(elapsed_s, tokens, failed or {}, complete=frozenset(complete))

    def num_used(self) -> int:
        return len({number for cells in self.cells.values() for number, _ in cells})
