"""A tenant's turns: one at a time, and nothing left of them."""

import asyncio

from nexa_runtime.serving.turns import Turns


def test_a_tenant_has_one_turn_at_a_time_and_others_do_not_wait() -> None:
    async def run() -> list[str]:
        turns, said = Turns(), list[str]()

        async def work(tenant_id: str, name: str, gate: asyncio.Event) -> None:
            async with turns.of(tenant_id):
                said.append(name)
                await gate.wait()

        first, rest = asyncio.Event(), asyncio.Event()
        rest.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(work("a", "a1", first))
            cut = group.create_task(work("a", "cut", rest))
            group.create_task(work("a", "a2", rest))
            group.create_task(work("b", "b1", rest))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cut.cancel()
            assert said == ["a1", "b1"]
            first.set()
        assert len(turns) == 0
        return said

    assert asyncio.run(run()) == ["a1", "b1", "a2"]
