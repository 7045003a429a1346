"""Structured logs on stderr: JSON lines, or readable lines when a person watches.

Owns the format and the fields that every line of a request carries. It never writes to stdout (that is data)
and never logs prompts or answers. ``cli`` configures it once; every layer above ``config`` logs through it.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

_LEVEL = logging.getLogger("nexa_runtime")
"""Only for its level, which it looks up faster than a logger of ours can be made."""


def configure_logging(level: str) -> None:
    """Set the least severe level written; one of Python's level names in upper case."""
    # Tracebacks never show local variables: a prompt may be among them.
    if sys.stderr.isatty():
        renderers: list[Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderers = [
            structlog.processors.ExceptionRenderer(transform),
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=False,
    )
    _LEVEL.setLevel(level)
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


class _Stderr:
    """Standard error, as long as someone reads it: a log that cannot be written must stop nothing."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


class _Forward(logging.Handler):
    """What libraries log becomes lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger(record.name).log(record.levelno, "library", text=record.getMessage())


def is_debugging() -> bool:
    """Whether lines of level DEBUG are written."""
    return _LEVEL.isEnabledFor(logging.DEBUG)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry ``room=name``."""
    return cast(FilteringBoundLogger, structlog.get_logger(room=name))


@contextmanager
def bind_request(*, request_id: str) -> Iterator[None]:
    """Every line logged inside carries the request's id."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield


def bind_tenant(tenant_id: str) -> None:
    """Every further line of the request that is being served carries its tenant's id."""
    structlog.contextvars.bind_contextvars(tenant=tenant_id)
