"""The shared library itself: loads it once, silences and keeps its log.

Owns the import of ``llama_cpp`` and llama.cpp's log callback. It never wraps single functions: ``vocab``,
``model``, ``context``, ``dry``, ``chain`` and ``c_chain`` call the C API through the name ``C`` from here.
"""

import ctypes
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

# On an abort llama.cpp would start a debugger to print a backtrace; that hangs in containers.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
# llama.cpp's OpenMP threads meet hundreds of times a step. Spinning for ever between, they take the cores
# from Python and from each other; sleeping at once, they lose a third of the speed. Measured with a model of
# 0.5B (Q4_K_M) on two cores, ms a step of one row: 31 asleep, 18 spinning, 19 with a short spin; beside one
# busy process 32, 111 and 48.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import llama_cpp.llama_cpp as C

from nexa_runtime.telemetry import get_logger, is_debugging

__all__ = ["C", "captured_log", "recent_errors"]

_LEVEL_ERROR = 4
_log = get_logger("llama.cpp")
_recent_errors: deque[str] = deque(maxlen=16)


def recent_errors(*, clear: bool = False) -> list[str]:
    """The last error lines of llama.cpp, oldest first: its functions return NULL and say why only here."""
    lines = list(_recent_errors)
    if clear:
        _recent_errors.clear()
    return lines


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    is_error = level == _LEVEL_ERROR
    if not is_error and not is_debugging():
        return
    if line := text.decode("utf-8", "replace").strip():
        if is_error:
            _recent_errors.append(line)
            _log.warning("llama_error", text=line)
        else:
            _log.debug("llama_log", text=line)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile, of every level and on any thread, line by line. One at a time."""
    lines: list[str] = []

    @C.llama_log_callback  # type: ignore[untyped-decorator]
    def on_log(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        lines.append(text.decode("utf-8", "replace"))
        _on_log(level, text, data)

    C.llama_log_set(on_log, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        C.llama_log_set(_on_log, ctypes.c_void_p(0))


C.llama_log_set(_on_log, ctypes.c_void_p(0))
C.llama_backend_init()
