"""Standard error that is never waited for: whoever writes goes on, and a thread of its own writes.

Owns the lines on their way, their order, and what becomes of them when the target is full, gone, or a pipe
that nobody reads: some wait, what comes on top is lost and counted, and the count is said once something
can be written again. ``serve`` runs behind it; commands that are done in a moment write directly.
"""

import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from nexa_runtime.telemetry.logging import get_logger

_MAX_WAITING_BYTES = 4 * 1024 * 1024
_END_S = 1.0
"""How long the end of the process waits for a target that takes nothing."""

_log = get_logger("telemetry")


@contextmanager
def stderr_behind() -> Iterator[None]:
    """Inside, everything that is written to ``sys.stderr`` goes by a thread; at the end it is waited for."""
    target = sys.stderr
    writer = _Writer(target.fileno(), is_terminal=target.isatty())
    sys.stderr = cast(TextIO, writer)
    try:
        yield
    finally:
        sys.stderr = target
        writer.end(_END_S)


def flush_stderr(timeout_s: float = _END_S) -> None:
    """Wait until what was written has arrived; for whoever ends the process on the spot."""
    if isinstance(sys.stderr, _Writer):
        sys.stderr.wait_written(timeout_s)


class _Writer(io.TextIOBase):
    """Takes texts from any thread."""

    def __init__(self, descriptor: int, *, is_terminal: bool) -> None:
        self._descriptor = descriptor
        self._is_terminal = is_terminal
        # Reentrant: a signal's handler or a finalizer may log in the middle of a write.
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._num_bytes = 0
        """Of what waits, and of what is being written."""
        self._num_lost = 0
        self._is_cut = False
        """Whether the target ends with a part of a line. Of the thread alone."""
        self._is_ended = False
        threading.Thread(target=self._run, name="stderr", daemon=True).start()

    def write(self, text: str, /) -> int:
        """Never waits, and never fails."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._num_bytes + len(data) > _MAX_WAITING_BYTES:
                self._num_lost += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._num_bytes += len(data)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Done by the thread."""

    def isatty(self) -> bool:
        """As the target."""
        return self._is_terminal

    def fileno(self) -> int:
        """The target's."""
        return self._descriptor

    def wait_written(self, timeout_s: float) -> None:
        """Wait until everything is written or lost."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_bytes, timeout_s)

    def end(self, timeout_s: float) -> None:
        """As ``wait_written``, and the thread ends."""
        self.wait_written(timeout_s)
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ended)
                if not self._waiting:
                    return
                data, self._waiting = b"".join(self._waiting), []
                num_lost = self._num_lost
            note = _log.text("warning", "lines_lost", lines=num_lost).encode() + b"\n" if num_lost else b""
            is_said = self._put(note) == len(note)
            rest = data[self._put(data) :] if is_said else data
            with self._changed:
                self._num_lost += rest.count(b"\n") - (num_lost if is_said else 0)
                self._num_bytes -= len(data)
                self._changed.notify_all()

    def _put(self, data: bytes) -> int:
        """Write to the target; how many bytes of it, less than all where it takes no more."""
        num_done = 0
        try:
            if data and self._is_cut:
                self._write_some(b"\n")
                self._is_cut = False
            while num_done < len(data):
                num_done += self._write_some(data[num_done:])
        except OSError:  # full, closed, or nobody reads any more: there is no place to say so
            pass
        if 0 < num_done < len(data):
            self._is_cut = not data[:num_done].endswith(b"\n")
        return num_done

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # whoever shares the pipe has set it so
                select.select([], [self._descriptor], [])
