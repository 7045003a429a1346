"""What the process says about itself: structured logs (metrics arrive with operations)."""

from nexa_runtime.telemetry.logging import (
    bind_request,
    bind_tenant,
    configure_logging,
    get_logger,
    is_debugging,
)

__all__ = ["bind_request", "bind_tenant", "configure_logging", "get_logger", "is_debugging"]
