"""Whose adapters the next step has: llama.cpp computes a step with one set of them.

Owns the turns of the sets. Pure; ``scheduler`` asks it which of the running sequences the next step may hold,
and tells it what the step took. With one set in all there are no turns, and it costs nothing.

A turn is a tenant's: of the tenants that run something, the one whose turns have taken least of the engine's
time for its weight is next, with that set of its own which has waited longest. Whoever else runs with the
same set rides along, and pays nothing for it. So many sets buy no more than one, no set waits for ever, and
none is held up by how many rows another has.

Deliberate: these accounts are in seconds, and are not the tenants' virtual time. That counts tokens and says
who gets a slot. In tokens a single answer would have as many steps for each of seven others' as these have
rows; and a tenant that rides in another's turns pays tokens there, so that its own set would never be next.
"""

from collections.abc import Collection
from dataclasses import dataclass

from nexa_runtime.engine.sequence import Sequence
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet

TURN_STEPS = 16
TURN_S = 0.1
"""A turn ends with the step that reaches either. Another set makes llama.cpp plan its graphs anew: that takes
as long as several steps of a small model (6 ms, where a step takes 1).
"""


@dataclass(slots=True)
class SetState:
    """What is kept of a set while any of its sequences lives."""

    num_alive: int = 0
    last_step: int = 0
    """The number of its last step, or of the one before it came."""
    prompt_rows: int = 0
    """Rows that its prompts may still take before its next step of answers (``PrefillBudget.turn``)."""


class AdapterTurns:
    """``enter`` and ``leave`` bracket the life of every sequence."""

    def __init__(self) -> None:
        self.current = SetState()
        """Of the set whose turn it is."""
        self._adapters: AdapterSet = NO_ADAPTERS
        """That set."""
        self._sets: dict[AdapterSet, SetState] = {}
        """Those of living sequences."""
        self._tenant_id = ""
        self._weight = 1.0
        self._num_steps = 0
        self._spent_s = 0.0
        self._paid: dict[str, float] = {}
        """Seconds by weight of the tenants that ran something when the turn began."""
        self._step = 0

    def enter(self, sequence: Sequence) -> None:
        """A sequence begins to wait."""
        one = self._sets.get(sequence.adapters)
        if one is None:
            one = self._sets[sequence.adapters] = SetState(last_step=self._step)
            self._settle()
        one.num_alive += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        one = self._sets[sequence.adapters]
        one.num_alive -= 1
        if not one.num_alive:
            del self._sets[sequence.adapters]
            self._settle()

    def members(self, running: list[Sequence]) -> list[Sequence]:
        """Of all that run, those of the set that the next step has; with one set the very list."""
        if len(self._sets) < 2 or not running:
            return running
        if not self._goes_on(running):
            self._begin(running)
        self._num_steps += 1
        self._step += 1
        self.current.last_step = self._step
        return [one for one in running if one.adapters == self._adapters]

    def charge(self, elapsed_s: float) -> None:
        """The step that ``members`` were asked for took so long."""
        if self._paid:
            self._spent_s += elapsed_s
            self._paid[self._tenant_id] += elapsed_s / self._weight

    def check_integrity(self, living: Collection[Sequence]) -> None:
        """Assert that every living sequence is counted. For tests."""
        counts = {adapters: one.num_alive for adapters, one in self._sets.items()}
        assert sum(counts.values()) == len(living)
        assert all(counts[one.adapters] for one in living)

    def _settle(self) -> None:
        """The number of sets has changed: one that is alone needs no turns."""
        if len(self._sets) == 1:
            ((self._adapters, self.current),) = self._sets.items()
            self._paid.clear()

    def _goes_on(self, running: list[Sequence]) -> bool:
        return (
            bool(self._paid)
            and self._sets.get(self._adapters) is self.current
            and self._num_steps < TURN_STEPS
            and self._spent_s < TURN_S
            and any(
                one.adapters == self._adapters and one.share.tenant_id == self._tenant_id for one in running
            )
        )

    def _begin(self, running: list[Sequence]) -> None:
        """Whoever comes anew has paid as much as the one that has paid least."""
        names = {one.share.tenant_id for one in running}
        floor = min((paid for name, paid in self._paid.items() if name in names), default=0.0)
        self._paid = {name: self._paid.get(name, floor) for name in names}
        first = min(
            running,
            key=lambda one: (
                self._paid[one.share.tenant_id],
                self._sets[one.adapters].last_step,
                one.arrival,
            ),
        )
        self._adapters, self.current = first.adapters, self._sets[first.adapters]
        self._tenant_id, self._weight = first.share.tenant_id, first.share.weight
        self._num_steps, self._spent_s = 0, 0.0
