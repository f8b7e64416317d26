"""`AsyncEventStore` is `EventStore` with `await`: the same names and arguments, and appends that share commits."""

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aegis_store import (
    UNLIMITED,
    AsyncEventStore,
    EventIdConflict,
    EventStore,
    EventsTruncated,
    EventTooLarge,
    InvalidEvent,
    NewEvent,
    SequenceConflict,
    SessionNotFound,
    StoreBusy,
    StoreClosed,
    StoreUnavailable,
    driver,
)
from aegis_store.settings import MAX_WAITING_APPENDS
from tests.concurrency.test_group_commit import held

WAIT_S = 60

Use = Callable[[AsyncEventStore], Awaitable[None]]


def use(path: Path, steps: Use, **options: Any) -> None:
    """Run the steps on the store at `path`, opened in a loop of its own."""

    async def main() -> None:
        async with AsyncEventStore.open(path, **{"durability": "process", **options}) as store:
            async with asyncio.timeout(WAIT_S):
                await steps(store)

    asyncio.run(main())


def public(of: type) -> dict[str, Any]:
    return {name: getattr(of, name) for name in dir(of) if not name.startswith("_")}


def test_both_classes_have_the_same_names() -> None:
    assert public(AsyncEventStore).keys() == public(EventStore).keys()
    assert {"__aenter__", "__aexit__"} <= set(dir(AsyncEventStore))


@pytest.mark.parametrize("name", sorted(name for name, value in public(EventStore).items() if callable(value)))
def test_a_method_has_the_same_arguments_and_a_text(name: str) -> None:
    ours, theirs = getattr(AsyncEventStore, name), getattr(EventStore, name)
    assert list(inspect.signature(ours).parameters.values()) == list(inspect.signature(theirs).parameters.values())
    assert inspect.getdoc(ours)
    assert name in ("open", "follow", "scoped") or inspect.iscoroutinefunction(ours)


def test_what_is_appended_is_read_and_what_goes_is_told(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        session = await store.create_session("s", max_events=2, metadata={"a": 1})
        assert session == await store.get_session("s")
        event = await store.append("s", "t", {"n": 1}, event_id="a", expected_seq=0, run_id="r", payload_ref="p")
        assert event == (await store.read("s")).events[0]
        assert event == await store.append("s", "t", {"n": 1}, event_id="a", run_id="r", payload_ref="p")
        many = await store.append_many("s", [NewEvent(type="t", payload=2), NewEvent(type="t", payload=3)])
        assert [one.seq for one in many] == [2, 3]
        assert (await store.get_session("s")).first_seq == 2
        await store.set_status("s", "closed")
        assert (await store.prune()).events_removed == 2
        assert (await store.stats()).events == 0

    use(path, steps)


def test_errors_are_those_of_the_other_class(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s")
        await store.append("s", "t", 1, event_id="a")
        for error, append in (
            (SessionNotFound, store.append("nobody", "t", 1)),
            (InvalidEvent, store.append("s", "t", float("nan"))),
            (EventTooLarge, store.append("s", "t", "x" * 1_100_000)),
            (SequenceConflict, store.append("s", "t", 1, expected_seq=7)),
            (EventIdConflict, store.append("s", "t", 2, event_id="a")),
            (SessionNotFound, store.append_many("nobody", [])),
        ):
            with pytest.raises(error):
                await append
        assert (await store.get_session("s")).last_seq == 1

    use(path, steps)


def test_it_opens_with_await_too_and_closes_twice(path: Path) -> None:
    async def main() -> None:
        store = await AsyncEventStore.open(path)
        await store.create_session("s")
        await store.close()
        await store.close()
        for call in (store.append("s", "t", 1), store.read("s"), store.prune(), store.stats()):
            with pytest.raises(StoreClosed):
                await call
        with pytest.raises(StoreUnavailable):
            async with AsyncEventStore.open(path.with_name("none.db"), create=False):
                pytest.fail("there is none")

    asyncio.run(main())


def test_static_methods_are_awaited(path: Path) -> None:
    async def main() -> None:
        before, after = await AsyncEventStore.upgrade(path)
        assert before == after
        assert (await AsyncEventStore.compact(path)).bytes_before > 0

    asyncio.run(main())


# Groups


def test_appends_of_tasks_that_wait_together_share_a_commit_in_the_order_of_asking(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s")
        seen: list[str] = []
        store._store._db.writer.driver.set_trace_callback(seen.append)
        store._store._db.patience_s = WAIT_S
        with held(store._store):
            tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(50)]
            while len(store._store._db.turns._line) < 50:
                await asyncio.sleep(0.001)
        events = await asyncio.gather(*tasks)
        store._store._db.writer.driver.set_trace_callback(None)
        assert [(event.seq, event.payload) for event in events] == [(number + 1, number) for number in range(50)]
        assert [text for text in seen if text in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"]

    use(path, steps)


def test_200_tasks_and_4_threads_lose_and_double_nothing(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s", max_events=UNLIMITED)
        seqs: list[int] = []

        async def write(number: int) -> None:
            own = [(await store.append("s", "t", number)).seq for _ in range(10)]
            assert own == sorted(own)
            seqs.extend(own)

        def write_in_thread() -> None:
            seqs.extend(store._store.append("s", "t", "thread").seq for _ in range(100))

        threads = [threading.Thread(target=write_in_thread) for _ in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(write(number) for number in range(200)))
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert sorted(seqs) == list(range(1, 2401))

    use(path, steps)


def test_no_more_than_so_many_appends_wait_at_a_time(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        store._store._db._checkpointer.stop()  # on a SQLite with the WAL-reset bug it would stand in the line too
        await store.create_session("s", max_events=UNLIMITED)
        store._store._db.patience_s = WAIT_S
        line = store._store._db.turns._line
        with held(store._store):
            tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(MAX_WAITING_APPENDS + 500)]
            while len(line) < MAX_WAITING_APPENDS:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert len(line) == MAX_WAITING_APPENDS
        assert [(await task).payload for task in tasks] == list(range(MAX_WAITING_APPENDS + 500))

    use(path, steps)


def test_the_loop_goes_on_while_others_hold_the_store(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s")
        with held(store._store):
            tasks = [asyncio.create_task(store.append("s", "t", 0)), asyncio.create_task(store.set_status("s", "idle"))]
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not any(task.done() for task in tasks)
        await asyncio.gather(*tasks)

    use(path, steps)


def test_who_waits_for_another_process_in_vain_is_told_how_long(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s")
        other = driver.dbapi.connect(str(path), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(*(store.append("s", "t", n) for n in range(5)), return_exceptions=True)
        assert all(isinstance(outcome, StoreBusy) and outcome.waited_ms >= 380 for outcome in outcomes), outcomes
        other.execute("COMMIT")
        other.close()
        assert (await store.append("s", "t", 0)).seq == 1

    use(path, steps, busy_timeout_ms=400)


# Cancelled


def test_an_append_that_is_cancelled_in_the_line_does_not_happen(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s")
        with held(store._store):
            task = asyncio.create_task(store.append("s", "t", 0))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await store.append("s", "t", 1)).seq == 1

    use(path, steps)


def test_an_append_that_is_cancelled_has_happened_or_not_by_the_time_its_task_goes_on(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s", max_events=UNLIMITED)
        appended = 0
        for number in range(300):
            task = asyncio.create_task(store.append("s", "t", number))
            await asyncio.sleep(0.00001 * number)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                last_seq = store._store.get_session("s").last_seq
                assert last_seq in (appended, appended + 1)
                appended = last_seq
            else:
                appended += 1
            assert not store._store._db.turns._line
        assert (await store.append("s", "t", "end")).seq == appended + 1
        assert 0 < appended < 300

    use(path, steps)


def test_an_opening_that_is_cancelled_leaves_no_open_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[EventStore] = []
    whole = EventStore.open

    def slow(*arguments: Any, **options: Any) -> EventStore:
        time.sleep(0.2)
        opened.append(whole(*arguments, **options))
        return opened[0]

    async def main() -> None:
        monkeypatch.setattr(EventStore, "open", slow)
        task = asyncio.create_task(AsyncEventStore.open(path)._opened())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not opened:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    asyncio.run(main())
    with pytest.raises(StoreClosed):
        opened[0].stats()


def test_closing_while_tasks_wait_ends_their_wait(path: Path) -> None:
    async def main() -> None:
        store = await AsyncEventStore.open(path)
        await store.create_session("s")
        with held(store._store):
            tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(10)]
            await asyncio.sleep(0.02)
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0.02)
        await closing
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, StoreClosed) or not isinstance(outcome, BaseException) for outcome in outcomes), outcomes
        async with AsyncEventStore.open(path, prune_on_open=False) as again:
            last_seq = (await again.get_session("s")).last_seq
        assert last_seq == sum(not isinstance(outcome, BaseException) for outcome in outcomes)

    asyncio.run(main())


def test_a_loop_that_ended_while_its_appends_waited_leaves_the_store_to_the_others(path: Path) -> None:
    async def main() -> EventStore:
        store = await AsyncEventStore.open(path, durability="process")
        await store.create_session("s")
        blocker = held(store._store)
        blocker.__enter__()
        tasks = [asyncio.create_task(store.append("s", "t", number)) for number in range(5)]
        await asyncio.sleep(0.02)
        threading.Timer(0.1, blocker.__exit__, (None, None, None)).start()
        assert tasks
        assert isinstance(store._store, EventStore)
        return store._store

    store = asyncio.run(main())
    assert store.append("s", "t", "after").seq >= 1
    store.close()


# Follow


def test_a_follower_gets_what_is_stored_then_what_comes_in_order(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s", max_events=UNLIMITED)
        await store.append_many("s", [NewEvent(type="t", payload=number) for number in range(150)])

        async def follow(session_id: str | None) -> list[Any]:
            return [event.payload async for event in store.follow(session_id, timeout=1)]

        followers = [asyncio.create_task(follow(session_id)) for session_id in ("s", "s", None)]
        for number in range(150, 300):
            await store.append("s", "t", number)
        for found in await asyncio.gather(*followers):
            assert found == list(range(300))

    use(path, steps)


def test_a_follower_hears_of_what_another_process_wrote_and_ends_with_the_store(path: Path) -> None:
    async def main() -> None:
        store = await AsyncEventStore.open(path, durability="process")
        await store.create_session("s")
        found: list[Any] = []

        async def follow() -> None:
            async for event in store.follow("s"):
                found.append(event.payload)  # noqa: PERF401 - which the test reads meanwhile

        follower = asyncio.create_task(follow())
        with EventStore.open(path, prune_on_open=False) as other:
            for number in range(3):
                await asyncio.to_thread(other.append, "s", "t", number)
                while len(found) <= number:
                    await asyncio.sleep(0.001)
        await store.close()
        await asyncio.wait_for(follower, WAIT_S)
        assert found == [0, 1, 2]

    asyncio.run(main())


def test_what_retention_took_is_told_to_a_follower(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s", max_events=2)
        await store.append_many("s", [NewEvent(type="t", payload=number) for number in range(5)])
        with pytest.raises(EventsTruncated):
            await anext(store.follow("s", after=0, timeout=0))
        found = [event async for event in store.follow("s", after=0, timeout=0, on_gap="skip")]
        assert [type(one).__name__ for one in found] == ["EventsMissed", "Event", "Event"]
        with pytest.raises(SessionNotFound):
            await anext(store.follow("nobody"))

    use(path, steps)


def test_a_follower_that_is_left_or_cancelled_leaves_nothing_behind(path: Path) -> None:
    async def steps(store: AsyncEventStore) -> None:
        await store.create_session("s")
        await store.append("s", "t", 0)
        stream = store.follow("s")
        assert (await anext(stream)).payload == 0
        await stream.aclose()
        stream = store.follow("s", after=1)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        assert not store._store._db.watcher._rings

    use(path, steps)
