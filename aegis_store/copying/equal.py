"""Two stores side by side: whether the one holds what the other does, each record and event."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from aegis_store.any_database import AnyDatabase, streamed
from aegis_store.copying.events import changed, checked, events_up_to
from aegis_store.copying.records import (
    BEGINNING,
    GRAVE,
    MAY_CHANGE,
    NEVER_CHANGE,
    graves_named,
    graves_of,
    number_of,
    sessions_named,
    sessions_of,
)
from aegis_store.errors import shown
from aegis_store.retention.limits import policy_in_force
from aegis_store.schema import event

_RECORD: Final = (*NEVER_CHANGE, *MAY_CHANGE, *BEGINNING, "removed_bytes")
_COUNTERS: Final = ("last_seq", "total_bytes", "last_event_at")
_CONTENT: Final = ("session_id", "seq", "position", "type", "occurred_at", "recorded_at", "event_id", "run_id", "payload_ref")
_PROGRESS_EVENTS: Final = 500


def compare(source: Connection, there: Connection, target: AnyDatabase, upto: int) -> Iterator[int]:
    """Read both, and say now and then how many events were found equal. `StoreUnavailable` where they are not.

    The source up to that position, the target to its end.
    """
    if policy_in_force(source) != policy_in_force(there):
        raise changed(target, "its policy is another")
    if number_of(source)[:2] != number_of(there)[:2]:
        raise changed(target, "it holds more sessions or tombstones, or fewer")
    _compare_records(source, there, target, _sessions_beyond(source, upto))
    yield from _compare_events(source, there, target, upto)


def _sessions_beyond(source: Connection, upto: int) -> set[int]:
    """Sessions whose counters are ahead of what is copied: of writers whose transactions had not ended everywhere."""
    return set(source.execute(select(event.c.session).where(event.c.position > upto).distinct()).scalars())


def _compare_records(source: Connection, there: Connection, target: AnyDatabase, beyond: set[int]) -> None:
    for batch in sessions_of(source):
        theirs = sessions_named(there, batch)
        for row in batch:
            _compare_row(row, theirs[row.session_id], _RECORD if row.id in beyond else (*_RECORD, *_COUNTERS), target)
    for batch in graves_of(source):
        theirs = graves_named(there, batch)
        for row in batch:
            _compare_row(row, theirs[row.session_id], GRAVE, target)


def _compare_row(row: Row[Any], other: Row[Any], columns: tuple[str, ...], target: AnyDatabase) -> None:
    for name in columns:
        if getattr(row, name) != getattr(other, name):
            raise changed(target, f"{name} of session {shown(row.session_id)} is another")


def _compare_events(source: Connection, there: Connection, target: AnyDatabase, upto: int) -> Iterator[int]:
    equal = 0
    with streamed(source, events_up_to(upto)) as rows, streamed(there, events_up_to(2**63 - 1)) as others:
        pairs = zip_longest((row for row in rows if row.session_id is not None), others)
        for equal, (row, other) in enumerate(pairs, 1):
            if row is None or other is None:
                raise changed(target, "it holds more events, or fewer")
            if any(getattr(row, name) != getattr(other, name) for name in (*_CONTENT, "bytes_before", "payload")):
                raise changed(target, f"event {row.seq} of session {shown(row.session_id)} is another")
            checked(there, other)
            if equal % _PROGRESS_EVENTS == 0:
                yield equal
    yield equal
