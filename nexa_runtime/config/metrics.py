"""Settings of the metrics."""

from pydantic import Field

from nexa_runtime.config.base import Slice


class MetricsSettings(Slice):
    """Metrics."""

    port: int | None = Field(
        None,
        validation_alias="NEXA_METRICS_PORT",
        ge=0,
        le=65_535,
        description="a port of NEXA_HOST with nothing but /metrics, without a key; 0: any free one",
    )
