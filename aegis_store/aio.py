"""`AsyncEventStore`: the methods of `EventStore` with `await`, off the event loop.

An append goes into the line of those who wait to write (`turns`), where those of all tasks share commits; their outcomes come
back to the event loop once per commit. Everything else runs on threads of the store's own; on a server, which has no such line,
appends do too, on some that nothing else waits for.
"""

import asyncio
import copy
import functools
import os
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, ClassVar, Concatenate, Final, Literal, ParamSpec, Self, TypeVar, overload

from aegis_store import append as appends
from aegis_store import follow as following
from aegis_store.append import Prepared
from aegis_store.connections import Durability
from aegis_store.errors import StoreClosed
from aegis_store.events import Event, EventsMissed, Json
from aegis_store.metrics import now_ns
from aegis_store.read import OnGap
from aegis_store.redaction import Redact
from aegis_store.settings import (
    DEFAULT_BUSY_TIMEOUT_MS,
    DEFAULT_MAINTAIN_EVERY,
    FOLLOW_GATHER_S,
    FOLLOW_LOOK_S,
    MAX_WAITING_APPENDS,
    THREADS_OF_ASYNC,
)
from aegis_store.sqlite_errors import ConstraintRefused
from aegis_store.store import EventStore
from aegis_store.store.scoped import ScopedStore
from aegis_store.turns import NoTurn, Rows, Statement

_P = ParamSpec("_P")
_R = TypeVar("_R")

# How often an append that was cancelled while it was carried out looks whether it has come to its end.
_SETTLED_POLL_S: Final = 0.0005


class _Waiting(Statement):
    """A statement in the line, and the future of the task that waits for it."""

    __slots__ = ("future",)

    def __init__(self, prepared: Prepared, wake: Callable[[list[Statement]], None], future: "asyncio.Future[None]") -> None:
        super().__init__(prepared.sql["sqlite"], prepared.parameters, prepared.payload_bytes, wake)
        self.future = future

    def tell(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def give_up(self) -> None:
        if not self.future.done():
            self.future.set_exception(NoTurn())


def _off_loop(
    method: Callable[Concatenate[EventStore, _P], _R],
) -> Callable[Concatenate["AsyncEventStore", _P], Coroutine[Any, Any, _R]]:
    """The method of `EventStore`, on a thread of the store's own."""

    @functools.wraps(method)
    async def call(self: "AsyncEventStore", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self._run(functools.partial(getattr(self._store, method.__name__), *args, **kwargs))

    return call


def _in_thread(function: Callable[_P, _R]) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """The static method of `EventStore`, on a thread."""

    @functools.wraps(function)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await asyncio.to_thread(function, *args, **kwargs)

    return call


class AsyncEventStore:
    """`EventStore` for asyncio: the same methods, arguments, results and errors, with `await`; it adds nothing of its own.

    Belongs to the event loop in which it was opened; for the tasks of that loop, not for threads. The text of each method is
    that of `EventStore`.

    Cancelled (`asyncio.CancelledError`), an append has happened or has not by the time its task goes on. Any other method that
    is at work goes on to its end on its thread; with `on_progress` raising, the long ones end early. At most 1,000 appends
    wait at a time: the next ones wait before they are encoded, so that memory does not grow.
    """

    sqlite_version: ClassVar[str] = EventStore.sqlite_version

    def __init__(self, store: EventStore) -> None:
        """Not for callers: see `open`."""
        self._store: EventStore | ScopedStore = store
        self._threads = ThreadPoolExecutor(THREADS_OF_ASYNC, thread_name_prefix="aegis-store async")
        self._threads_of_appends = ThreadPoolExecutor(THREADS_OF_ASYNC, thread_name_prefix="aegis-store append")
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(MAX_WAITING_APPENDS)

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str],
        *,
        durability: Durability = "power",
        create: bool = True,
        read_only: bool = False,
        prune_on_open: bool = True,
        maintain_every: timedelta | None = DEFAULT_MAINTAIN_EVERY,
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
        allow_network_file_system: bool = False,
        redact: Redact | None = None,
    ) -> "_Opening":
        """As `EventStore.open`; `async with AsyncEventStore.open(…) as store`, or `store = await AsyncEventStore.open(…)`."""
        return _Opening(
            functools.partial(
                EventStore.open,
                target,
                durability=durability,
                create=create,
                read_only=read_only,
                prune_on_open=prune_on_open,
                maintain_every=maintain_every,
                busy_timeout_ms=busy_timeout_ms,
                allow_network_file_system=allow_network_file_system,
                redact=redact,
            )
        )

    def scoped(self, *, tenant: str, owner: str) -> "AsyncEventStore":
        """As `EventStore.scoped`, not awaited; with the methods of `ScopedStore`. Its close does nothing."""
        scoped = copy.copy(self)
        scoped._store = self._store.scoped(tenant=tenant, owner=owner)
        return scoped

    async def append(
        self,
        session_id: str,
        type: str,
        payload: Json,
        *,
        event_id: str | None = None,
        expected_seq: int | None = None,
        occurred_at: datetime | None = None,
        run_id: str | None = None,
        payload_ref: str | None = None,
    ) -> Event:
        """As `EventStore.append`; on a file the appends of tasks that wait at the same time share a commit."""
        began_ns = now_ns()
        db = self._store._db
        async with self._room:
            given = (session_id, type, payload, event_id, expected_seq, occurred_at, run_id, payload_ref)
            prepared = appends.prepare(*given, redact=db.redact, scope=self._store._scope)
            event = await (self._in_line(prepared) if db.shares_commits else self._on_thread(prepared))
        db.metrics.appended(began_ns)
        return event

    async def _on_thread(self, prepared: Prepared) -> Event:
        db = self._store._db
        db.check_writable()
        work = self._threads_of_appends.submit(appends.append, db, prepared)
        outcome = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            if not work.cancel():  # it is under way
                await asyncio.wait([outcome])
            raise

    async def _in_line(self, prepared: Prepared) -> Event:
        try:
            rows = await self._written(prepared)
        except ConstraintRefused:
            rows = []
        if rows:
            return prepared.stored(*rows[0])
        return await self._run(functools.partial(appends.settle, self._store._db, prepared))

    async def _written(self, prepared: Prepared) -> Rows:
        db = self._store._db
        asked_s = db.ask()
        statement = _Waiting(prepared, self._wake, self._loop.create_future())
        patience: asyncio.TimerHandle | None = None
        try:
            db.turns.put(statement)
            patience = self._loop.call_later(db.patience_s, self._lose_patience, statement)
            await statement.future
        except NoTurn:
            return await self._run(
                functools.partial(db.execute_round_the_line, prepared.sql["sqlite"], prepared.parameters, asked_s)
            )
        except asyncio.CancelledError:
            await self._left(statement)
            raise
        finally:
            if patience is not None:
                patience.cancel()
        return statement.outcome()

    def _wake(self, statements: list[Statement]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_tell, statements)

    def _lose_patience(self, statement: _Waiting) -> None:
        if self._store._db.turns.withdraw(statement):
            statement.give_up()

    async def _left(self, statement: Statement) -> None:
        """Return when the statement is out of the line and not being carried out."""
        turns = self._store._db.turns
        if not turns.withdraw(statement):
            while not statement.is_settled and turns.lock.locked():
                await asyncio.sleep(_SETTLED_POLL_S)

    async def _run(self, call: Callable[[], _R]) -> _R:
        self._store._db.check_open()
        return await self._loop.run_in_executor(self._threads, call)

    create_session = _off_loop(EventStore.create_session)
    ensure_session = _off_loop(EventStore.ensure_session)
    get_session = _off_loop(EventStore.get_session)
    list_sessions = _off_loop(EventStore.list_sessions)
    set_status = _off_loop(EventStore.set_status)
    update_session = _off_loop(EventStore.update_session)
    delete_session = _off_loop(EventStore.delete_session)

    append_many = _off_loop(EventStore.append_many)
    read = _off_loop(EventStore.read)
    read_all = _off_loop(EventStore.read_all)

    @overload
    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: Literal["raise"] = "raise",
    ) -> AsyncGenerator[Event, None]: ...

    @overload
    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: Literal["skip"],
    ) -> AsyncGenerator[Event | EventsMissed, None]: ...

    async def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: OnGap = "raise",
    ) -> AsyncGenerator[Event | EventsMissed, None]:
        """As `EventStore.follow`, for `async for`; what that raises at the call is raised at the first event."""
        db, rung = self._store._db, asyncio.Event()

        def ring() -> None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(rung.set)

        timeout_s = following.checked_timeout_s(timeout)
        begin = functools.partial(self._store._following, session_id, after=after, last=last, types=types, on_gap=on_gap)
        follower = await self._run(begin)
        try:
            until_s = self._loop.time() + timeout_s
            while True:
                batch = await self._run(functools.partial(follower.next_batch, db))
                for event in batch:
                    yield event
                if batch:
                    until_s = self._loop.time() + timeout_s
                    continue
                left_s = until_s - self._loop.time()
                if left_s <= 0:
                    return
                await self._run(functools.partial(db.watcher.subscribe, ring))
                with suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), min(left_s, FOLLOW_LOOK_S))
                rung.clear()
                await asyncio.sleep(FOLLOW_GATHER_S)
        except StoreClosed:
            if not db.was_closed:  # but belongs to the parent of this process
                raise
        finally:
            db.watcher.unsubscribe(ring)

    retention_policy = _off_loop(EventStore.retention_policy)
    set_retention_policy = _off_loop(EventStore.set_retention_policy)
    plan_policy = _off_loop(EventStore.plan_policy)
    plan_prune = _off_loop(EventStore.plan_prune)
    prune = _off_loop(EventStore.prune)
    prune_history = _off_loop(EventStore.prune_history)
    reclaim = _off_loop(EventStore.reclaim)

    export = _off_loop(EventStore.export)
    import_lines = _off_loop(EventStore.import_lines)
    import_aegis = _off_loop(EventStore.import_aegis)
    backup = _off_loop(EventStore.backup)

    overview = _off_loop(EventStore.overview)
    session_overview = _off_loop(EventStore.session_overview)
    stats = _off_loop(EventStore.stats)
    health = _off_loop(EventStore.health)
    verify = _off_loop(EventStore.verify)

    upgrade = staticmethod(_in_thread(EventStore.upgrade))
    compact = staticmethod(_in_thread(EventStore.compact))
    restore = staticmethod(_in_thread(EventStore.restore))
    copy = staticmethod(_in_thread(EventStore.copy))
    doctor = staticmethod(_in_thread(EventStore.doctor))

    async def close(self) -> None:
        """As `EventStore.close`. Appends that wait get `StoreClosed`."""
        if isinstance(self._store, ScopedStore):
            return
        # Not on the store's threads: those may all be waiting.
        await asyncio.to_thread(self._store.close)
        for threads in (self._threads, self._threads_of_appends):
            threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._store)[1:]}"


def _tell(statements: list[Statement]) -> None:
    for statement in statements:
        if isinstance(statement, _Waiting):
            statement.tell()


class _Opening:
    """A store to be: awaited, or entered."""

    def __init__(self, open_store: Callable[[], EventStore]) -> None:
        self._open_store = open_store
        self._store: AsyncEventStore | None = None

    def __await__(self) -> Generator[Any, None, AsyncEventStore]:
        return self._opened().__await__()

    async def _opened(self) -> AsyncEventStore:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open_store))
        try:
            store = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # It opens all the same, on its thread: closed again then, or it would stay open for ever.
            opening.add_done_callback(_close_again)
            raise
        return AsyncEventStore(store)

    async def __aenter__(self) -> AsyncEventStore:
        self._store = await self
        return self._store

    async def __aexit__(self, *_: object) -> None:
        if self._store is not None:
            await self._store.close()


def _close_again(opening: "asyncio.Future[EventStore]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
