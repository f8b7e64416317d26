"""`AsyncEventStore` and scopes on a server: what they promise on a file, and what differs, since each append commits alone."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from aegis_store import UNLIMITED, AsyncEventStore, StoreBusy, StoreClosed
from aegis_store.settings import THREADS_OF_ASYNC
from tests import test_aio, test_scoped
from tests.postgres.server import connect
from tests.postgres.test_contract import contract
from tests.test_scoped import mine as mine

WAIT_S = 30
OF_THE_SESSION = "SELECT 1 FROM session WHERE session_id = 's' FOR UPDATE"

for _module in (test_aio, test_scoped):
    globals().update(contract(_module, urls=True))


def test_most_of_the_contract_is_here() -> None:
    assert len([name for name in globals() if name.startswith("test_")]) > 40


@pytest.fixture
def path(postgres_url: str) -> str:
    return postgres_url


def use(url: str, steps: Callable[[AsyncEventStore], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with AsyncEventStore.open(url, **{"durability": "process", "maintain_every": None, **options}) as store:
            await store.create_session("s", max_events=UNLIMITED)
            async with asyncio.timeout(WAIT_S):
                await steps(store)

    asyncio.run(main())


@contextmanager
def held(url: str) -> Any:
    """Nobody appends to the session s meanwhile."""
    with connect(url) as shell, shell.transaction():
        shell.execute(OF_THE_SESSION)
        yield


def waiting(url: str) -> int:
    """How many wait for a lock."""
    with connect(url) as shell:
        (count,) = shell.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone() or (0,)
        return int(str(count))


def test_an_append_that_is_cancelled_under_way_has_happened_by_the_time_its_task_goes_on(postgres_url: str) -> None:
    async def steps(store: AsyncEventStore) -> None:
        with held(postgres_url):
            task = asyncio.create_task(store.append("s", "t", 0))
            while waiting(postgres_url) < 1:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.sleep(0.1)
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await store.append("s", "t", 1)).seq == 2

    use(postgres_url, steps)


def test_an_append_that_is_cancelled_before_it_is_under_way_does_not_happen(postgres_url: str) -> None:
    async def steps(store: AsyncEventStore) -> None:
        with held(postgres_url):
            tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(THREADS_OF_ASYNC + 5)]
            while waiting(postgres_url) < THREADS_OF_ASYNC:
                await asyncio.sleep(0.01)
            for late in tasks[THREADS_OF_ASYNC:]:
                late.cancel()
            outcomes = await asyncio.gather(*tasks[THREADS_OF_ASYNC:], return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 5
        assert {(await task).payload for task in tasks[:THREADS_OF_ASYNC]} == set(range(THREADS_OF_ASYNC))
        assert (await store.append("s", "t", 1)).seq == THREADS_OF_ASYNC + 1

    use(postgres_url, steps)


def test_reads_do_not_wait_behind_appends_that_wait(postgres_url: str) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.append("s", "t", 0)
        with held(postgres_url):
            tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(50)]
            while waiting(postgres_url) < THREADS_OF_ASYNC:
                await asyncio.sleep(0.01)
            assert len((await store.read("s")).events) == 1
            assert [event.payload async for event in store.follow("s", timeout=0)] == [0]
        assert sorted(event.seq for event in await asyncio.gather(*tasks)) == list(range(2, 52))

    use(postgres_url, steps)


def test_who_waits_in_vain_is_told_and_the_loop_goes_on(postgres_url: str) -> None:
    async def steps(store: AsyncEventStore) -> None:
        with held(postgres_url):
            outcomes = await asyncio.gather(*(store.append("s", "t", n) for n in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreBusy] * 5

    use(postgres_url, steps, busy_timeout_ms=300)


def test_closing_while_appends_wait_ends_their_wait(postgres_url: str) -> None:
    async def main() -> None:
        store = await AsyncEventStore.open(postgres_url, maintain_every=None)
        await store.create_session("s")
        with held(postgres_url):
            tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(30)]
            while waiting(postgres_url) < THREADS_OF_ASYNC:
                await asyncio.sleep(0.01)
            await store.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        appended = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {StoreClosed}
        assert len(appended) >= THREADS_OF_ASYNC
        async with AsyncEventStore.open(postgres_url, maintain_every=None) as again:
            assert (await again.get_session("s")).last_seq == len(appended)

    asyncio.run(main())


def test_stores_that_are_opened_at_once_in_one_process_are_made_once(postgres: Any) -> None:
    async def main(url: str) -> None:
        stores = await asyncio.gather(*(AsyncEventStore.open(url, maintain_every=None)._opened() for _ in range(3)))
        await stores[0].create_session("s")
        assert [(await store.get_session("s")).last_seq for store in stores] == [0, 0, 0]
        for store in stores:
            await store.close()

    with postgres.database() as url, ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, main(url)).result(WAIT_S)
