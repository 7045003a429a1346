"""What the process says about itself: structured logs (metrics arrive with operations)."""

from nexa_runtime.telemetry.behind import flush_stderr, stderr_behind
from nexa_runtime.telemetry.logging import (
    Logger,
    bind_request,
    bind_tenant,
    configure_logging,
    get_logger,
    is_debugging,
    set_level,
)

__all__ = [
    "Logger",
    "bind_request",
    "bind_tenant",
    "configure_logging",
    "flush_stderr",
    "get_logger",
    "is_debugging",
    "set_level",
    "stderr_behind",
]
