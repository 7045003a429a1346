"""The command, with what a test does to it; run as ``python -m tests.server.faulty serve …``.

The product has no switch for any of it. Once the file that it names is there, ``TEST_HANG_FILE`` lets no step
end, and with ``TEST_BLOCK_FILE`` ``/health`` blocks the event loop. ``TEST_LEASE_S``: seconds that a lease
lives.
"""

import os
import threading

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.cli.entry import main
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.sequence import StepPlan, StepResult
from nexa_runtime.server import discovery
from nexa_runtime.server.routes import health

execute, answer_health = Runner.execute, health.health


def stick(name: str) -> None:
    """For ever, once the file is there that a variable names."""
    if os.path.exists(os.environ.get(name, "")):
        threading.Event().wait()


def hang(self: Runner, plan: StepPlan) -> StepResult:
    stick("TEST_HANG_FILE")
    return execute(self, plan)


async def block(_: Request) -> Response:
    stick("TEST_BLOCK_FILE")
    return await answer_health(_)


if __name__ == "__main__":
    Runner.execute = hang  # type: ignore[method-assign]
    health.health = block
    discovery.LEASE_S = int(os.environ.get("TEST_LEASE_S", discovery.LEASE_S))
    main()
