"""What a process on this machine holds, read from ``/proc``, and whether that grows.

Owns the reading and the slope. ``soak``, ``overload`` and ``faults`` sample with it.
"""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

_MEGABYTE = 2**20


@dataclass(frozen=True)
class Held:
    """``rss_mb``: resident memory, in MB of 2^20 bytes."""

    rss_mb: float
    num_threads: int
    num_files: int


def held_by(pid: int) -> Held:
    """What a process holds at this moment. Raises ``OSError`` when it has gone."""
    folder = Path("/proc") / str(pid)
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    rss_mb = int(fields["VmRSS"].split()[0]) * 1024 / _MEGABYTE
    return Held(round(rss_mb, 2), int(fields["Threads"]), len(os.listdir(folder / "fd")))


def slope(points: list[tuple[float, float]]) -> float:
    """Growth per unit of time after Theil and Sen: the median over all pairs, which few jumps do not move."""
    slopes = [
        (after - before) / (end - start)
        for index, (start, before) in enumerate(points)
        for end, after in points[index + 1 :]
        if end > start
    ]
    return statistics.median(slopes) if slopes else 0.0


def least_squares(points: list[tuple[float, float]]) -> float:
    """Growth per unit of time of the line that fits best."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0
