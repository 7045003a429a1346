"""Whoever waits for a thread goes on when it has ended, however it is cancelled."""

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest

from nexa_runtime.serving.threads import run_to_end


class Work:
    """Something slow; ``finish`` lets it end."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.finish = threading.Event()
        self.has_ended = False

    def __call__(self) -> str:
        self.has_begun.set()
        self.finish.wait(10)
        self.has_ended = True
        return "done"


def test_the_result_and_the_error_of_the_thread() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def run() -> str:
        with pytest.raises(ValueError, match="no"):
            await run_to_end(fail)
        return await run_to_end(lambda: "done")

    assert asyncio.run(run()) == "done"


def by_task(task: asyncio.Task[None], scope: anyio.CancelScope) -> None:
    task.cancel()


def twice(task: asyncio.Task[None], scope: anyio.CancelScope) -> None:
    task.cancel()
    asyncio.get_running_loop().call_later(0.02, task.cancel)


def by_scope(task: asyncio.Task[None], scope: anyio.CancelScope) -> None:
    scope.cancel()


@pytest.mark.parametrize("cancel", [by_task, twice, by_scope])
def test_a_cancellation_waits_for_the_thread(
    cancel: Callable[[asyncio.Task[None], anyio.CancelScope], None],
) -> None:
    async def run() -> None:
        work, limiter, scope = Work(), anyio.CapacityLimiter(1), anyio.CancelScope()
        went_on = False

        async def request() -> None:
            nonlocal went_on
            with scope:
                try:
                    await run_to_end(work, limiter=limiter)
                    await asyncio.sleep(10)
                finally:
                    went_on = True

        task = asyncio.create_task(request())
        await run_to_end(work.has_begun.wait)
        cancel(task, scope)
        await asyncio.sleep(0.05)
        assert not went_on
        assert limiter.borrowed_tokens == 1
        work.finish.set()
        await asyncio.wait([task])
        assert went_on
        assert work.has_ended
        assert limiter.borrowed_tokens == 0
        assert task.cancelled() == (cancel is not by_scope)

    asyncio.run(run())
