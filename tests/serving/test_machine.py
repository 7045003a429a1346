"""What this machine lets the process have."""

import os

from nexa_runtime.llama import free_gpu_bytes
from nexa_runtime.serving.machine import available_memory_bytes, free_memory_bytes, num_usable_cores


def test_there_is_memory_and_not_more_than_the_machine_has() -> None:
    assert 0 < available_memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_there_are_cores_and_not_more_than_the_machine_has() -> None:
    assert 1 <= num_usable_cores() <= (os.cpu_count() or 1)


def test_a_gpu_bounds_the_memory_for_models_where_there_is_one() -> None:
    gpu_bytes = free_gpu_bytes()
    bound = free_memory_bytes(uses_gpu=True)
    assert bound > 0
    assert gpu_bytes is None or bound <= gpu_bytes
    assert free_memory_bytes(uses_gpu=False) > 0
