"""The record of prune runs: a row each, written with the first slice and kept up with every other."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from aegis_store.any_database import AnyDatabase
from aegis_store.events import checked_count, from_us, to_us
from aegis_store.record_copy import intact
from aegis_store.retention.plan import PrunePlan
from aegis_store.retention.truncate import Removed
from aegis_store.schema import prune_run
from aegis_store.sessions import now_us
from aegis_store.settings import MAX_PRUNE_RUNS
from aegis_store.sqlite_errors import check_intact, damaged

Trigger = Literal["startup", "maintenance", "api", "cli"]


_KEPT_UP: Final = ("events", "bytes", "sessions", "sessions_forgotten", "reasons", "duration_us", "outcome")
_UPDATE: Final = (
    update(prune_run).where(prune_run.c.id == bindparam("key")).values({name: bindparam(name) for name in _KEPT_UP})
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRun:
    """One run of a prune, as the store recorded it.

    `now` is the moment that it decided by. `events`, `bytes` (of payloads) and `sessions` are what it removed so far, also
    if it was killed; `by_reason` counts events by knob. `outcome` is "done", "reported" (mode `warn`: nothing was removed,
    the figures say what would have been), "interrupted", "failed: …", "overtaken" (a maintenance that was taken for dead),
    or None: at work, or killed.
    """

    id: int
    started_at: datetime
    now: datetime
    trigger: str
    events: int
    bytes: int
    sessions: int
    sessions_forgotten: int
    by_reason: Mapping[str, int]
    duration_s: float
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a run has removed so far. Values, so that a transaction that fails leaves no trace in them."""

    events: int = 0
    bytes: int = 0
    sessions: int = 0
    sessions_forgotten: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)

    def plus(self, removed: Removed, reason: str, *, first_of_session: bool) -> "Totals":
        return replace(
            self,
            events=self.events + removed.events,
            bytes=self.bytes + removed.bytes,
            sessions=self.sessions + first_of_session,
            by_reason={**self.by_reason, reason: self.by_reason.get(reason, 0) + removed.events},
        )

    @classmethod
    def of(cls, plan: PrunePlan) -> "Totals":
        """What would be removed if the plan were carried out."""
        return cls(
            events=plan.events,
            bytes=plan.bytes,
            sessions=sum(truncation.events > 0 for truncation in plan.truncations),
            sessions_forgotten=plan.sessions_forgotten,
            by_reason={reason: total.events for reason, total in plan.by_reason().items() if total.events},
        )


class Run:
    """The run that is under way: what it has removed, and its row."""

    def __init__(self, now: datetime, trigger: Trigger) -> None:
        self.id: int | None = None
        self.totals = Totals()
        self._now = now
        self._trigger = trigger
        self._started_us = now_us()
        self._started_s = time.monotonic()

    @property
    def duration_s(self) -> float:
        return time.monotonic() - self._started_s

    def write(self, conn: Connection, totals: Totals, outcome: str | None = None) -> int:
        """Write the row in your transaction; its id, to be kept with the totals once that is committed."""
        values: dict[str, Any] = {
            "events": totals.events,
            "bytes": totals.bytes,
            "sessions": totals.sessions,
            "sessions_forgotten": totals.sessions_forgotten,
            "reasons": json.dumps(totals.by_reason, sort_keys=True),
            "duration_us": int(self.duration_s * 1e6),
            "outcome": outcome,
        }
        if self.id is not None:
            conn.execute(_UPDATE, values | {"key": self.id})
            return self.id
        values |= {"started_at": self._started_us, "now": to_us(self._now), "trigger": self._trigger}
        made = conn.execute(insert(prune_run).values(values).returning(prune_run.c.id)).scalar_one()
        conn.execute(delete(prune_run).where(prune_run.c.id <= made - MAX_PRUNE_RUNS))
        return int(made)

    def committed(self, made: int, totals: Totals) -> None:
        self.id, self.totals = made, totals

    def finish(self, db: AnyDatabase, outcome: str) -> None:
        with db.write() as conn:
            made = self.write(conn, self.totals, outcome)
        self.id = made
        if outcome != "reported":
            db.metrics.ran_prune()


def history(conn: Connection, limit: int) -> list[PruneRun]:
    """The newest runs first, `limit` (1 to 1,000) of them."""
    checked_count("limit", limit, 1, MAX_PRUNE_RUNS)
    rows = conn.execute(select(prune_run, intact("prune_run")).order_by(prune_run.c.id.desc()).limit(limit)).all()
    for row in rows:
        check_intact(conn, row.intact, f"run {row.id} of a prune")
    return [
        PruneRun(
            id=row.id,
            started_at=from_us(row.started_at),
            now=from_us(row.now),
            trigger=row.trigger,
            events=row.events,
            bytes=row.bytes,
            sessions=row.sessions,
            sessions_forgotten=row.sessions_forgotten,
            by_reason=_reasons(conn, row),
            duration_s=row.duration_us / 1e6,
            outcome=row.outcome,
        )
        for row in rows
    ]


def _reasons(conn: Connection, row: Any) -> dict[str, int]:
    try:
        found = json.loads(row.reasons)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(type(events) is int for events in found.values()):
        raise damaged(conn, f"run {row.id} of a prune has something else where its reasons belong")
    return found
