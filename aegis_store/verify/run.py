"""The order in which a store is verified."""

import time
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy import Connection, func, select

from aegis_store.any_database import Readable
from aegis_store.errors import StoreCorrupt, printable, shown
from aegis_store.schema import session
from aegis_store.settings import MAX_PROBLEMS
from aegis_store.verify import content, server_structure
from aegis_store.verify import structure as file_structure
from aegis_store.verify.content import SessionCheck
from aegis_store.verify.report import Problem, VerifyReport

OnVerified = Callable[[int, int], None]
"""Called with (events looked at, events in the store)."""

Look = Callable[[Connection], Iterator[Problem | str]]
"""Gives what is wrong, and as text what it could not look at."""

# By the dialect: what is looked at before the sessions, one after the other.
_LOOKS: Final[dict[str, tuple[Look, ...]]] = {
    "sqlite": (
        file_structure.changes_of_schema,
        file_structure.structure,
        content.damaged_records,
        content.wrong_totals,
    ),
    "postgresql": (
        server_structure.changes_of_schema,
        server_structure.structure,
        content.damaged_records,
        server_structure.wrong_totals,
    ),
}
_KEYS_AT_ONCE: Final = 1000
_LONGEST_DETAIL: Final = 500  # of an error: SQLite tells of a page of noise cell by cell
_HELD: Final = select(func.coalesce(func.sum(session.c.last_seq - session.c.first_seq + 1), 0))


def verify(db: Readable, on_progress: OnVerified | None = None) -> VerifyReport:
    """Read everything, change nothing. See `EventStore.verify`."""
    started_s = time.monotonic()
    found = _Found()
    with db.read() as conn:
        looks = _LOOKS[conn.dialect.name]
    for look in looks:
        _look(db, look, found)
    sessions = events = without_checksum = 0
    try:
        with db.read() as conn:
            held = conn.execute(_HELD).scalar_one()
        for key in _keys(db):
            check = SessionCheck(db, key)
            for problems in check.stretches():
                found.add(problems)
                if on_progress is not None:
                    on_progress(min(events + check.events, held), held)
            sessions, events = sessions + 1, events + check.events
            without_checksum += check.without_checksum
    except StoreCorrupt as error:
        found.add([Problem("structure", f"the sessions cannot be read: {error.detail}")])
    return VerifyReport(
        problems=tuple(found.problems),
        more_problems=found.more,
        sessions=sessions,
        events=events,
        events_without_checksum=without_checksum,
        duration_s=time.monotonic() - started_s,
        not_looked_at=tuple(found.not_looked_at),
    )


def refuse_damaged(db: Readable, store: str, *, on_progress: OnVerified | None = None) -> VerifyReport:
    """Raise `StoreCorrupt` if the store is damaged; what was verified.

    For what is about to move its pages, and with them what could be saved.
    """
    report = verify(db, on_progress)
    if report.damage:
        first = report.damage[0]
        where = "" if first.session_id is None else f"session {shown(first.session_id)}: "
        where = where if first.seq is None else f"event {first.seq} of {where}"
        detail = first.detail if len(first.detail) <= _LONGEST_DETAIL else f"{first.detail[:_LONGEST_DETAIL]}…"
        raise StoreCorrupt(
            store=store,
            detail=f"{where}{detail}",
            hint="`aegis-store verify` tells all that is wrong, and what to do",
        )
    return report


class _Found:
    """The problems so far: a file of noise must not fill the memory with them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.more = 0
        self.not_looked_at: list[str] = []

    def add(self, problems: list[Problem]) -> None:
        room = MAX_PROBLEMS - len(self.problems)
        # Names and messages of a schema that somebody has changed may hold anything.
        self.problems += [problem._replace(detail=printable(problem.detail)) for problem in problems[:room]]
        self.more += len(problems[room:])


def _look(db: Readable, look: Look, found: _Found) -> None:
    """Where the database gives up, that is what was found."""
    try:
        with db.read() as conn:
            for told in look(conn):
                if isinstance(told, str):
                    found.not_looked_at.append(told)
                else:
                    found.add([told])
    except StoreCorrupt as error:
        found.add([Problem("structure", error.detail)])


def _keys(db: Readable) -> Iterator[int]:
    """All sessions, also those that were deleted and whose events are going; a thousand in a snapshot."""
    last = 0
    while True:
        query = select(session.c.id).where(session.c.id > last).order_by(session.c.id).limit(_KEYS_AT_ONCE)
        with db.read() as conn:
            keys = conn.execute(query).scalars().all()
        yield from keys
        if len(keys) < _KEYS_AT_ONCE:
            return
        last = keys[-1]
