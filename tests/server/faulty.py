"""The command, with what a test does to it; run as ``python -m tests.server.faulty serve …``.

The product has no switch for any of it. ``TEST_HANG_FILE``: once that file is there, a step never ends.
``TEST_LEASE_S``: seconds that a lease lives.
"""

import os
import threading
from pathlib import Path

from nexa_runtime.cli.entry import main
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.sequence import StepPlan, StepResult
from nexa_runtime.server import discovery


def hang_once_there(path: Path) -> None:
    execute = Runner.execute

    def hang(self: Runner, plan: StepPlan) -> StepResult:
        if path.exists():
            threading.Event().wait()
        return execute(self, plan)

    Runner.execute = hang  # type: ignore[method-assign]


if __name__ == "__main__":
    if "TEST_HANG_FILE" in os.environ:
        hang_once_there(Path(os.environ["TEST_HANG_FILE"]))
    discovery.LEASE_S = int(os.environ.get("TEST_LEASE_S", discovery.LEASE_S))
    main()
