"""The order in which a store is verified."""

import time
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy import Connection, func, select

from aegis_store.errors import StoreCorrupt, shown
from aegis_store.schema import session
from aegis_store.settings import MAX_PROBLEMS
from aegis_store.verify.content import Readable, SessionCheck, damaged_records, wrong_totals
from aegis_store.verify.report import Problem, VerifyReport
from aegis_store.verify.structure import changes_of_schema, structure

OnVerified = Callable[[int, int], None]
"""Called with (events looked at, events in the store)."""

_KEYS_AT_ONCE: Final = 1000
_HELD: Final = select(func.coalesce(func.sum(session.c.last_seq - session.c.first_seq + 1), 0))


def verify(db: Readable, on_progress: OnVerified | None = None) -> VerifyReport:
    """Read everything, change nothing. See `EventStore.verify`."""
    started_s = time.monotonic()
    found = _Found()
    for look in (changes_of_schema, structure, damaged_records, wrong_totals):
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
        raise StoreCorrupt(
            store=store,
            detail=f"{where}{first.detail}",
            hint="`aegis-store verify` tells all that is wrong, and what to do",
        )
    return report


class _Found:
    """The problems so far: a file of noise must not fill the memory with them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.more = 0

    def add(self, problems: list[Problem]) -> None:
        room = MAX_PROBLEMS - len(self.problems)
        self.problems += problems[:room]
        self.more += len(problems[room:])


def _look(db: Readable, look: Callable[[Connection], Iterator[Problem]], found: _Found) -> None:
    """Each in a snapshot of its own. Where SQLite gives up, that is what was found."""
    try:
        with db.read() as conn:
            for problem in look(conn):
                found.add([problem])
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
