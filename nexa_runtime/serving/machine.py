"""What this machine lets the process have: memory and cores.

Owns the questions to the operating system, control groups included, and to llama.cpp about GPUs. It decides
nothing by the answers; ``loading`` and ``calibration`` do.
"""

import os
import platform
from pathlib import Path

from nexa_runtime.llama import free_gpu_bytes

_GROUP = Path("/sys/fs/cgroup")
_BUSY_PART = 0.25


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
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one without a limit
        return available_bytes
    reclaimable = _number_after(str(_GROUP / "memory.stat"), "file") or 0
    return max(min(available_bytes, limit - used + reclaimable), 0)


def num_usable_cores() -> int:
    """Cores, or hardware threads of them, that this process may keep busy: those it may run on, or what its
    control group's quota pays for if that is less.
    """
    num_cores = len(_usable_cpus())
    try:
        quota, period = map(int, (_GROUP / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no control group, or one without a quota
        return num_cores
    return max(min(num_cores, quota // period), 1)


def num_physical_cores() -> int:
    """The same, where the hardware threads of one core count once; all where the system does not say."""
    cpus = Path("/sys/devices/system/cpu")
    try:
        cores = {(cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in _usable_cpus()}
    except OSError:
        return num_usable_cores()
    return min(len(cores), num_usable_cores())


def is_busy() -> bool:
    """Whether in the last minute a good part of the usable cores was taken: what is measured now is slow."""
    return os.getloadavg()[0] > _BUSY_PART * num_usable_cores()


def processor_name() -> str:
    """The processor's name, or its architecture where the system has no name for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    parts = (line.partition(":") for line in lines)
    names = (value.strip() for word, _, value in parts if word.strip() == "model name")
    return next(names, platform.machine())


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _number_after(path: str, word: str) -> int | None:
    """The number after ``word`` at the start of a line, as the kernel's tables have it."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines)
    return next((int(field[1]) for field in fields if field[:1] == [word]), None)
