"""What this machine lets the process have: memory and cores.

Owns the questions to the operating system, control groups included, and to llama.cpp about GPUs. It decides
nothing by the answers; ``loading`` does.
"""

import os
from pathlib import Path

from nexa_runtime.llama import free_gpu_bytes


def free_memory_bytes(*, uses_gpu: bool) -> int:
    """Memory for models: what this process may still take, or what the GPUs have free if that is less."""
    available_bytes = available_memory_bytes()
    gpu_bytes = free_gpu_bytes() if uses_gpu else None
    return available_bytes if gpu_bytes is None else min(available_bytes, gpu_bytes)


def available_memory_bytes() -> int:
    """Memory that this process may still take: the machine's, or its control group's if that is less."""
    available = _number_after("/proc/meminfo", "MemAvailable:")
    if available is None:
        available_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        available_bytes = available * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one without a limit
        return available_bytes
    reclaimable = _number_after(str(group / "memory.stat"), "file") or 0
    return max(min(available_bytes, limit - used + reclaimable), 0)


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number_after(path: str, word: str) -> int | None:
    """The number after ``word`` at the start of a line, as the kernel's tables have it."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines)
    return next((int(field[1]) for field in fields if field[:1] == [word]), None)
