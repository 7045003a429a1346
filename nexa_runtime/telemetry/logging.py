"""Structured logs on stderr: JSON lines, or readable lines when a person watches.

Owns the fields that every line has, and how far libraries are listened to. It never writes to stdout (that is
data), and never raises: a line that cannot be made or written is no reason for a request to fail. ``cli``
configures it once; every layer above ``config`` logs through it. ``values`` bounds and redacts, ``rendering``
writes, ``behind`` keeps whoever logs from waiting for the target.
"""

import logging
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from nexa_runtime.telemetry.redaction import hide
from nexa_runtime.telemetry.rendering import as_json, as_words
from nexa_runtime.telemetry.structured import structlog
from nexa_runtime.telemetry.values import clean, describe

_LEVEL = logging.getLogger("nexa_runtime")
"""Only for its level."""
_NAMES = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))

_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)


def configure_logging(level: str, *, secrets: Iterable[str] = ()) -> None:
    """Set the least severe level written, one of Python's level names in upper case.

    ``secrets``: texts that are never written, wherever they are.
    """
    set_level(level)
    hide(secrets)
    _processors[:] = [_complete, _to_words if sys.stderr.isatty() else _to_json]
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


def set_level(level: str) -> None:
    """Change the least severe level written; it holds from the next line on."""
    _LEVEL.setLevel(level)


def is_debugging() -> bool:
    """Whether lines of level DEBUG are written."""
    return _LEVEL.isEnabledFor(logging.DEBUG)


class Logger(structlog.BoundLoggerBase):
    """One room's. A method per level; what a line says is its event and its fields."""

    def debug(self, event: str, /, **fields: object) -> None:
        self.log(logging.DEBUG, event, **fields)

    def info(self, event: str, /, **fields: object) -> None:
        self.log(logging.INFO, event, **fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self.log(logging.WARNING, event, **fields)

    def error(self, event: str, /, **fields: object) -> None:
        self.log(logging.ERROR, event, **fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error, with the exception that is being handled."""
        self.log(logging.ERROR, event, exc_info=True, **fields)

    def log(self, level: int, event: str, /, **fields: object) -> None:
        """At one of Python's levels. Never raises."""
        if not _LEVEL.isEnabledFor(level):
            return
        name = next((name for floor, name in _NAMES if level >= floor), "debug")
        try:
            self._logger.write(self.text(name, event, **fields))
        except structlog.DropEvent:
            pass
        except Exception:  # noqa: BLE001 - what is logged is other code's; it must not pay for that
            self._logger.write('{"level":"error","event":"log_line_failed","room":"telemetry"}')

    def text(self, level_name: str, event: str, /, **fields: object) -> str:
        """The line that would be written."""
        (line,), _ = self._process_event(level_name, event, fields)
        return str(line)


def log_crashes() -> None:
    """From now on what nobody catches becomes a line too: in the main thread, in others, in finalizers."""
    log = get_logger("process")

    def on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, Exception):
            log.error("crashed", exc_info=error)
        else:
            sys.__excepthook__(kind, error, trace)

    def on_thread_crash(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, SystemExit):
            name = None if args.thread is None else args.thread.name
            log.error("thread_crashed", thread=name, exc_info=args.exc_value)

    before = sys.unraisablehook

    def on_ignored(ignored: "sys.UnraisableHookArgs") -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)  # that is for whoever runs the process
        else:
            log.error("error_ignored", text=ignored.err_msg, exc_info=ignored.exc_value)

    sys.excepthook = on_crash
    threading.excepthook = on_thread_crash
    sys.unraisablehook = on_ignored


def get_logger(name: str) -> Logger:
    """A logger whose lines carry ``room=name``."""
    return Logger(_stderr, _processors, {"room": name})


@contextmanager
def bind_request(*, request_id: str) -> Iterator[None]:
    """Every line logged inside carries the request's id, and who asks as soon as that is known."""
    with structlog.contextvars.bound_contextvars(request_id=request_id, tenant=None, key_id=None):
        yield


def bind_caller(tenant_id: str, key_id: str | None) -> None:
    """Every further line of the request that is being served says who asks, and by which key."""
    structlog.contextvars.bind_contextvars(tenant=tenant_id, key_id=key_id)


class _Stderr:
    """Standard error, as it is at the moment of the line."""

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # full, closed, or not there at all
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


class _Forward(logging.Handler):
    """What libraries log becomes lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's mistake in its own line
            text = str(record.msg)
        fault = {"exc_info": record.exc_info} if record.exc_info else {}
        get_logger(record.name).log(record.levelno, "library", text=text, **fault)


def _complete(_: object, level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What every line has first, then what holds for the request, then the event's own."""
    line = {
        "timestamp": "",
        "level": level,
        "event": fields.pop("event", None),
        "room": fields.pop("room", None),
    }
    line.update(structlog.contextvars.get_contextvars())
    line.update(fields)
    exc_info = line.pop("exc_info", None)
    error = sys.exc_info()[1] if exc_info is True else exc_info
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        line["exception"] = describe(error)
    return _stamp(None, level, line)


def _to_json(_: object, __: str, fields: MutableMapping[str, Any]) -> str:
    return as_json(clean(fields))


def _to_words(_: object, __: str, fields: MutableMapping[str, Any]) -> str:
    return as_words(clean(fields))


_stderr = _Stderr()
_processors: list[Any] = [_complete, _to_json]
"""One list for all loggers: structlog's ``capture_logs`` changes it in place."""
structlog.configure(processors=_processors, wrapper_class=Logger)
