"""How long a lane's steps take, and on what.

Owns these numbers; the lane adds to them on the engine thread, one addition per number and step, and any
thread may read. Nothing is looked up here, and nothing decided.
"""

from dataclasses import dataclass, field

from nexa_runtime.telemetry.metrics.histogram import ROWS, Histogram


@dataclass(slots=True)
class StepMeter:
    """``step`` in seconds, ``rows`` of a step. ``gap``: seconds between two steps that brought the same
    sequence tokens.

    A step's time is that of ``schedule``, ``decode`` (with the KV that it moves), ``sample`` and ``publish``,
    in seconds: the books, the text of the tokens, and their way to the event loop.
    """

    step: Histogram = field(default_factory=Histogram)
    rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    gap: Histogram = field(default_factory=Histogram)
    schedule_s: float = 0.0
    decode_s: float = 0.0
    sample_s: float = 0.0
    publish_s: float = 0.0
