"""What the process says about itself: structured logs, from here; ``metrics`` has its numbers."""

from nexa_runtime.telemetry.behind import flush_stderr, stderr_behind
from nexa_runtime.telemetry.logging import (
    Logger,
    bind_caller,
    bind_request,
    configure_logging,
    get_logger,
    is_debugging,
    log_crashes,
    set_level,
)

__all__ = [
    "Logger",
    "bind_caller",
    "bind_request",
    "configure_logging",
    "flush_stderr",
    "get_logger",
    "is_debugging",
    "log_crashes",
    "set_level",
    "stderr_behind",
]
