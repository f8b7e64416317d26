"""The maintenance of a process that lives long: a prune every so often, on a thread of its own.

Of all the processes that have a store open, one at a time does it: the store's row says when it was last done and, while it is,
by whom. Who is at work says so with each slice, in the slice's own transaction; who has not been heard of for a minute is
taken for dead, and if it was only asleep, finds out before it removes anything more.
"""

import logging
import os
import secrets
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, or_, select, update

from aegis_store.any_database import AnyDatabase
from aegis_store.errors import AegisStoreError, StoreClosed
from aegis_store.events import from_us, to_us
from aegis_store.log import log
from aegis_store.retention.find import plan
from aegis_store.retention.jobs import run_job
from aegis_store.retention.limits import policy_in_force
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.schema import store
from aegis_store.sessions import now_us
from aegis_store.settings import MAINTENANCE_LEASE_S
from aegis_store.sqlite_errors import damaged

_LEASE_US: Final = int(MAINTENANCE_LEASE_S * 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceState:
    """What this process knows of its maintenance. `last_error` is that of the last turn, None when it went well."""

    every: timedelta
    last_turn_at: datetime | None
    last_error: str | None


class Maintenance:
    """The thread of one open store. A daemon: an interpreter that ends does not wait for it, and a transaction that is cut
    off by that is rolled back as after any death.
    """

    def __init__(self, db: AnyDatabase, every: timedelta) -> None:
        self._db = db
        self._every = every
        self._me = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._stopped = threading.Event()
        self._state = MaintenanceState(every=every, last_turn_at=None, last_error=None)
        self._thread = threading.Thread(target=self._run, name="aegis-store maintenance", daemon=True)
        self._thread.start()

    @property
    def state(self) -> MaintenanceState:
        return self._state

    def stop(self) -> None:
        """Have it end, and wait for the slice under way. From the thread itself: do not wait."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        wait_s = self._every.total_seconds()
        while not self._stopped.wait(min(wait_s, threading.TIMEOUT_MAX)):
            error: Exception | None = None
            try:
                wait_s = self._turn()
            except StoreClosed:
                return
            except Exception as caught:  # noqa: BLE001 - whatever it is, it is told, and the next turn tries again
                error, wait_s = caught, self._every.total_seconds()
                told = "maintenance failed, the next turn is in %s: %s"
                fields = {"error": type(caught).__name__, "next_turn_s": wait_s}
                log(logging.ERROR, "maintenance_failed", self._db.target, told, self._every, _told(caught), **fields)
            self._state = replace(self._state, last_turn_at=datetime.now(UTC), last_error=_told(error) if error else None)

    def _turn(self) -> float:
        """Do what is due, unless another process does or did; how many seconds to wait for the next turn."""
        every_us = self._every // timedelta(microseconds=1)
        with self._db.read() as conn:
            wait_us = _left_us(conn, every_us)
        if wait_us > 0:
            return wait_us / 1e6
        with self._db.write() as conn:
            if not self._claim(conn, every_us):
                return self._every.total_seconds()
        try:
            self._prune()
        finally:
            with self._db.write() as conn:
                self._write(conn, {"maintainer": None, "maintained_at": now_us()})
        return self._every.total_seconds()

    def _prune(self) -> None:
        with self._db.read() as conn:
            in_force = policy_in_force(conn)
            due = plan(conn, None, self._patient(in_force))
        run_job(self._db, due, trigger="maintenance", guard=self._guard)

    def _patient(self, policy: RetentionPolicy) -> RetentionPolicy:
        """A session that ended less than one turn ago is left alone: who follows it has had no time to read its end."""
        forget = policy.forget_sessions_after
        return replace(
            policy,
            terminal_grace=max(policy.terminal_grace, self._every),
            forget_sessions_after=None if forget is None else max(forget, self._every),
        )

    def _claim(self, conn: Connection, every_us: int) -> bool:
        now = now_us()
        # (A claim of its own is one that it could not give back, since the store was busy or the disk full then.)
        nobody = or_(store.c.maintainer.is_(None), store.c.maintainer == self._me, _silent_since(now, _LEASE_US))
        due = or_(store.c.maintained_at.is_(None), _silent_since(now, every_us), store.c.maintainer.is_not(None))
        claim = update(store).where(nobody, due).values(maintainer=self._me, maintained_at=now)
        return conn.execute(claim).rowcount == 1

    def _guard(self, conn: Connection) -> str | None:
        if self._stopped.is_set():
            return "interrupted"
        return None if self._write(conn, {"maintained_at": now_us()}) else "overtaken"

    def _write(self, conn: Connection, values: dict[str, Any]) -> bool:
        return conn.execute(update(store).where(store.c.maintainer == self._me).values(values)).rowcount == 1


def _silent_since(now: int, span_us: int) -> Any:
    """Nothing was heard for that long. A time to come is one of a clock that went back since: it counts as silence."""
    return or_(store.c.maintained_at <= now - span_us, store.c.maintained_at > now + span_us)


def _left_us(conn: Connection, every_us: int) -> int:
    """How long until the next turn is due, counted from the last one of whichever process."""
    last = maintained_at(conn)
    if last is None:
        return 0
    left = to_us(last) + every_us - now_us()
    return left if left <= every_us else 0  # more than that: the clock went back


def maintained_at(conn: Connection) -> datetime | None:
    """When the store was maintained last. `StoreCorrupt` if what stands there is no time."""
    found = conn.execute(select(store.c.maintained_at)).scalar_one()
    try:
        return None if found is None else from_us(found)
    except (OverflowError, TypeError):
        raise damaged(conn, "the time of its last maintenance is none") from None


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, AegisStoreError) else f"{type(error).__name__}: {error}"
