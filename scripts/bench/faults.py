"""What goes wrong on a bad night, one fault after the other, each against a server process of its own.

Prints a line for each: what was seen, or what was not as promised. Ends with 1 when anything was not. Faults
that only a clock or an engine of the test's own can show are tests; their names are printed too.

    scripts/bench/faults [--only NAME]... [--json FILE] [--keep-logs FOLDER]
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.bench import fault_edge, fault_ends, fault_sinks
from scripts.bench.child import Broken, Child
from scripts.bench.common import BenchError
from scripts.bench.postgres import Postgres, find_binaries

_EDGE: Mapping[str, object] = {
    "NEXA_HEADER_TIMEOUT_S": fault_edge.HEADER_TIMEOUT_S,
    "NEXA_BODY_TIMEOUT_S": fault_edge.BODY_TIMEOUT_S,
    "NEXA_SEND_TIMEOUT_S": 20,
}


@dataclass(frozen=True)
class Fault:
    """``run``: with a child of these ``settings``. ``max_files``: the descriptors that it may have."""

    run: Callable[[Child], Awaitable[str]]
    settings: Mapping[str, object] = field(default_factory=dict)
    max_files: int | None = None


FAULTS: Mapping[str, Fault] = {
    "sigterm-idle": Fault(fault_ends.sigterm_idle),
    "sigterm-streaming": Fault(fault_ends.sigterm_streaming),
    "sigterm-survivor": Fault(fault_ends.sigterm_survivor, {"NEXA_DRAIN_S": 1}),
    "sigterm-loading": Fault(fault_ends.sigterm_loading),
    "sigterm-twice": Fault(fault_ends.sigterm_twice),
    # A slot for the slow one too: what others lose is to be its slowness, not its request.
    "slow-reader": Fault(fault_edge.slow_reader, {**_EDGE, "NEXA_SLOTS": 16}),
    "idle-sockets": Fault(fault_edge.idle_sockets, _EDGE),
    "half-header": Fault(fault_edge.half_header, _EDGE),
    "missing-body": Fault(fault_edge.missing_body, _EDGE),
    "large-body": Fault(fault_edge.large_body, _EDGE),
    "wrong-length": Fault(fault_edge.wrong_length, _EDGE),
    "descriptors": Fault(fault_edge.descriptors, _EDGE, fault_edge.MAX_FILES),
    "log-full": Fault(fault_sinks.log_full),
    "kill": Fault(fault_ends.kill_under_load),
}

DATABASE_FAULTS: Mapping[str, Callable[[Child, Postgres], Awaitable[str]]] = {
    "database-away": fault_sinks.database_away,
    "kill-with-spool": fault_sinks.kill_with_spool,
}

ELSEWHERE: Mapping[str, str] = {
    "clock-jump": "scripts/test tests/server/test_watchdog.py -k jump",
    "engine-hang": "scripts/test tests/server/test_watchdog.py -k hangs",
    "overload": "scripts/bench/overload",
    "soak": "scripts/bench/soak",
}
"""What is shown by something else: a clock and an engine that fail on purpose are a test's."""


@dataclass(frozen=True)
class Outcome:
    """``verdict``: ok, BROKEN or skipped."""

    name: str
    verdict: str
    text: str
    seconds: float


async def run_one(name: str, folder: Path) -> str:
    """Run a fault; what was seen. Raises ``Broken`` and ``BenchError``."""
    with ExitStack() as stack:
        if name in FAULTS:
            fault = FAULTS[name]
            child = Child(folder, max_files=fault.max_files, **fault.settings)
            stack.callback(child.kill)
            return await fault.run(child)
        binaries = find_binaries()
        if binaries is None:
            return ""
        database = Postgres(binaries)
        stack.callback(database.remove)
        database.start()
        child = Child(folder, NEXA_USAGE_DSN=database.dsn)
        stack.callback(child.kill)
        return await DATABASE_FAULTS[name](child, database)


def outcome_of(name: str, logs: Path | None) -> Outcome:
    """Run a fault in a folder of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nexa-fault-") as folder:
        try:
            text = asyncio.run(run_one(name, Path(folder)))
            verdict = "ok" if text else "skipped"
            text = text or "there is no PostgreSQL here"
        except* (Broken, BenchError) as errors:
            verdict, text = "BROKEN", "; ".join(map(str, errors.exceptions))
        if logs is not None and (log := Path(folder) / "server.log").exists():
            shutil.copy(log, logs / f"{name}.log")
    return Outcome(name, verdict, text, round(time.perf_counter() - begin, 1))


def main() -> None:
    """Parse the arguments, run, print; 1 when anything was not as promised."""
    names = [*FAULTS, *DATABASE_FAULTS]
    parser = argparse.ArgumentParser(description="Do to a server what happens on a bad night.")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the outcomes there")
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER", help="keep the servers' logs there")
    arguments = parser.parse_args()
    if arguments.keep_logs:
        arguments.keep_logs.mkdir(parents=True, exist_ok=True)
    outcomes = []
    try:
        for name in arguments.only or names:
            outcome = outcome_of(name, arguments.keep_logs)
            outcomes.append(outcome)
            print(f"{name:18} {outcome.verdict:8} {outcome.seconds:6.1f} s  {outcome.text}", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    if not arguments.only:
        for name, place in ELSEWHERE.items():
            print(f"{name:18} see      {place}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=2) + "\n")
    sys.exit(1 if any(one.verdict == "BROKEN" for one in outcomes) else 0)


if __name__ == "__main__":
    main()
