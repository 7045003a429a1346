"""Pulls in processes that are killed, or that meet."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from nexa_runtime.store.catalog import Catalog, HubReference
from nexa_runtime.store.pull import PullEvent, pull
from nexa_runtime.store.store import ModelStore
from tests.hub_models import DEMO, SHA256, SIZE, Waits, assert_tidy, hub_of, names_in
from tests.hub_standin import HubStandin


class Nursery:
    """A process that has imported everything, and forks one that pulls whenever it is asked to."""

    CODE = """
import os, sys
from pathlib import Path
from nexa_runtime.config import load_settings
from nexa_runtime.store.catalog import Catalog, HubReference
from nexa_runtime.store.hub import Hub
from nexa_runtime.store.pull import pull
from nexa_runtime.store.store import ModelStore
store = ModelStore(Path(sys.argv[1]), Path(sys.argv[2]))
hub = Hub(load_settings({"HF_ENDPOINT": sys.argv[3], "HF_HUB_OFFLINE": "0"}).store)
for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        pull(HubReference(sys.argv[4]), store=store, hub=hub, catalog=Catalog(()))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""

    def __init__(self, standin: HubStandin, tmp_path: Path) -> None:
        arguments = [str(tmp_path / "models"), str(tmp_path / "state"), standin.url, DEMO]
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)

    def start(self) -> int:
        """Begin a pull; its process."""
        assert self._process.stdin is not None
        self._process.stdin.write("pull\n")
        self._process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """How the pull's process ended, as ``os.waitpid`` tells it."""
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_two_pulls_share_one_transfer(standin: HubStandin, store: ModelStore, tmp_path: Path) -> None:
    events: list[PullEvent] = []
    standin.bytes_per_s = 10_000_000
    with Nursery(standin, tmp_path) as nursery:
        nursery.start()
        wait_until(lambda: standin.bytes_sent[SHA256] > 0)
        record = pull(
            HubReference(DEMO),
            store=store,
            hub=hub_of(standin, Waits()),
            catalog=Catalog(()),
            on_event=events.append,
        )
        assert nursery.wait() == 0
    assert "waiting" in [event.kind for event in events]
    assert standin.bytes_sent[SHA256] == SIZE
    assert store.records() == [record]
    assert_tidy(store)


def test_fifty_kills_cost_less_than_a_fifth_more(
    standin: HubStandin, store: ModelStore, tmp_path: Path
) -> None:
    chance = random.Random(50)
    standin.bytes_per_s = 4_000_000
    with Nursery(standin, tmp_path) as nursery:
        for _ in range(50):
            num_bytes = chance.randrange(1, int(1.6 * SIZE / 50))
            # However late the kill comes, no more is sent than that.
            standin.order("stall", where="/resolve/", at=num_bytes)
            goal = standin.bytes_sent[SHA256] + num_bytes
            pid = nursery.start()
            wait_until(lambda goal=goal: standin.bytes_sent[SHA256] >= goal)  # type: ignore[misc]
            os.kill(pid, signal.SIGKILL)
            assert nursery.wait() == signal.SIGKILL
            assert names_in(store.root / "blobs") == names_in(store.root / "records") == []
        nursery.start()
        assert nursery.wait() == 0
    assert standin.bytes_sent[SHA256] <= 1.2 * SIZE
    (record,) = store.records()
    assert hashlib.sha256(store.paths(record)[0].read_bytes()).hexdigest() == SHA256
    assert_tidy(store)
