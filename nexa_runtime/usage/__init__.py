"""What finished requests leave behind: records, and the sinks that keep them."""

from nexa_runtime.usage.record import UsageRecord
from nexa_runtime.usage.recorder import Recorder, Sink

__all__ = ["Recorder", "Sink", "UsageRecord"]
