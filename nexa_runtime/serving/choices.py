"""What a generation's reader gets: parts of its choices as they come, and whole ones.

Owns these values; ``generation`` makes them, ``server`` and ``cli`` write them. No wire format.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.chat.messages import ToolCall
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.llama import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """News of one choice: text to append to its content or its reasoning, part of a tool call, its end.

    ``logprobs``: of the tokens sampled since the last delta, where they were asked for; their text may come
    later, or be none. ``stop``, of the last delta: the stop text that ended the choice, if one did.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    call: CallDelta | None = None
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    stop: str | None = None


@dataclass(slots=True)
class Choice:
    """All of one choice. ``stop``: the stop text that ended it, if one did."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.ABORT
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    stop: str | None = None

    @property
    def mean_logprob(self) -> float:
        """Of the tokens whose log-probabilities were asked for."""
        return sum(one.logprob for one in self.logprobs) / max(len(self.logprobs), 1)

    @classmethod
    def of(cls, deltas: Iterable[ChoiceDelta]) -> "Choice":
        """The choice that came in these parts."""
        whole = cls()
        texts: list[str] = []
        reasoning: list[str] = []
        calls: list[tuple[CallDelta, list[str]]] = []
        for delta in deltas:
            texts.append(delta.text)
            reasoning.append(delta.reasoning)
            whole.logprobs += delta.logprobs
            if (call := delta.call) is not None:
                if call.id is not None:
                    calls.append((call, []))
                calls[call.index][1].append(call.arguments)
            if delta.finish_reason is not None:
                whole.finish_reason, whole.stop = delta.finish_reason, delta.stop
        whole.text, whole.reasoning = "".join(texts), "".join(reasoning)
        whole.calls = [ToolCall(call.id or "", call.name or "", "".join(parts)) for call, parts in calls]
        return whole


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds: waiting for a slot, until its first token after that, and
    from there on.
    """

    queue_s: float
    prompt_s: float
    predicted_s: float
