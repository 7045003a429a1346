"""Why requests had better go elsewhere at this moment.

Owns the list of reasons and their codes. It only asks: the engine and the event loop are the watchdog's to
watch, the default model is the pool's. ``routes/health`` answers with it, ``discovery`` registers by it.
"""

from dataclasses import dataclass

from nexa_runtime.server.watchdog import Watchdog
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.tenancy.directory import TenantDirectory


@dataclass(frozen=True, slots=True)
class Reason:
    """``code`` for programs, ``message`` for people: one sentence, or two."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests are taken and answered."""

    dispatcher: Dispatcher
    directory: TenantDirectory
    watchdog: Watchdog

    @property
    def is_ready(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons()

    def reasons(self) -> list[Reason]:
        """All that there are, the gravest first."""
        dispatcher = self.dispatcher
        found = []
        if dispatcher.is_draining:
            found.append(Reason("draining", "The server is about to end."))
        elif not dispatcher.is_running:
            found.append(Reason("engine_stopped", "The engine does not run."))
        if self.watchdog.is_engine_hung:
            found.append(Reason("engine_hung", "A step of the engine takes longer than NEXA_STEP_LIMIT_S."))
        if dispatcher.is_preparing:
            found.append(Reason("model_loading", "The default model is being prepared."))
        elif (problem := dispatcher.pool.default_problem) is not None:
            is_loading = dispatcher.pool.is_default_awaited
            found.append(Reason("model_loading" if is_loading else "model_unavailable", problem))
        if not self.directory.has_answered:
            found.append(Reason("limits_unavailable", "The limits' source has not answered."))
        return found
