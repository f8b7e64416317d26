"""What has been going on, from a bounded look: how many events came when, and what the newest ones are.

No look here grows with the store: the newest events are a fixed number of them, and when events came is found by halving the
positions, since the times of recording rise with them. None reads a payload, so none verifies a checksum.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection

from aegis_store.checksum import LAST_POSITION_POSTGRESQL, LAST_POSITION_SQL
from aegis_store.driver_text import DriverText
from aegis_store.events import from_us_within, to_us
from aegis_store.settings import RATE_PARTS, SAMPLE_EVENTS, SAMPLE_SHARES
from aegis_store.sqlite_errors import damaged

_NEWEST_SQL: Final = """
SELECT event.type, event.recorded_at, event.bytes_before, session.total_bytes, session.id, session.session_id
FROM event {join} session ON session.id = event.session ORDER BY event.position DESC LIMIT :most
"""
_NEWEST: Final = DriverText(_NEWEST_SQL.format(join="CROSS JOIN"), postgresql=_NEWEST_SQL.format(join="JOIN"))
_NEWEST_OF_SESSION: Final = DriverText("""
SELECT type, recorded_at, bytes_before FROM event WHERE session = :session AND seq > :after ORDER BY seq DESC
""")
_DOWN: Final = DriverText("""
SELECT position, recorded_at FROM event WHERE position > :low AND position <= :middle ORDER BY position DESC LIMIT 1
""")
_UP: Final = DriverText("""
SELECT position, recorded_at FROM event WHERE position > :middle AND position < :high ORDER BY position LIMIT 1
""")
_EDGES: Final = DriverText(
    f"SELECT (SELECT created_at FROM session ORDER BY id LIMIT 1), (SELECT removed_at FROM store), ({LAST_POSITION_SQL})",
    postgresql=f"""
SELECT (SELECT created_at FROM session ORDER BY id LIMIT 1), (SELECT removed_at FROM removal), ({LAST_POSITION_POSTGRESQL})
""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of some events have this name, a type or a session's id, and the bytes of their payloads."""

    name: str
    events: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSample:
    """The newest events, `events` of them, none recorded before `since`; those of what is being deleted are not counted.

    `types` and `sessions` have those with the most events first, ten at the most. `sessions` is empty for the sample of one.
    """

    events: int
    since: datetime | None
    types: tuple[Share, ...]
    sessions: tuple[Share, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRate:
    """How many events were appended in each `step` of time, the last of which ends at `until`.

    Whether they are retained does not matter, since positions are counted. Where that is not known to the event, as between
    two retained events with removed ones between them, they are spread evenly over the time, and `is_estimate` says so; it
    also does where events are not in the order of their times (a clock went back, older events were imported).
    """

    counts: tuple[int, ...]
    step: timedelta
    until: datetime
    is_estimate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadSizes:
    """The payload bytes of some events: their sum, the largest, and how many take up to so many bytes, in powers of 4."""

    bytes: int
    largest: int
    up_to: tuple[tuple[int, int], ...]


def newest(conn: Connection) -> EventSample:
    """The newest 2,000 events of the store."""
    types, sessions = _Shares(), _Shares()
    end: dict[int, int] = {}  # by session: the bytes before the event that was looked at before this one, the next by seq
    since = None
    for type_, recorded_us, bytes_before, total_bytes, key, session_id in _rows(conn, _NEWEST, most=SAMPLE_EVENTS):
        payload_bytes = max(end.get(key, total_bytes) - bytes_before, 0)
        end[key] = bytes_before
        if isinstance(session_id, str):  # else it is being deleted
            types.add(type_, payload_bytes)
            sessions.add(session_id, payload_bytes)
            since = recorded_us if since is None else min(since, recorded_us)
    return EventSample(events=types.total, since=_moment(since), types=types.largest(), sessions=sessions.largest())


def newest_of_session(conn: Connection, row: Any, most: int) -> tuple[EventSample, PayloadSizes]:
    """The newest events of a session, `most` of them at the most. `row` is its row of the table `session`."""
    after = max(row.last_seq - most, row.first_seq - 1)
    types = _Shares()
    sizes: list[int] = []
    end, since = row.total_bytes, None
    for type_, recorded_us, bytes_before in _rows(conn, _NEWEST_OF_SESSION, session=row.id, after=after):
        sizes.append(max(end - bytes_before, 0))
        types.add(type_, sizes[-1])
        end, since = bytes_before, recorded_us if since is None else min(since, recorded_us)
    return EventSample(events=types.total, since=_moment(since), types=types.largest(), sessions=()), _sizes(sizes)


def _rows(conn: Connection, sql: DriverText, **bounds: int) -> Iterator[Any]:
    """Rows that begin with a type and with numbers. `StoreCorrupt` where they are not: no checksum is looked at here."""
    for row in conn.exec_driver_sql(sql.on(conn), bounds):
        if not isinstance(row[0], str) or not all(isinstance(number, int) for number in row[1:4]):
            raise damaged(conn, "an event has something else where its type or a number belongs")
        yield row


def _moment(us: int | None) -> datetime | None:
    return None if us is None else from_us_within(us)


class _Shares:
    def __init__(self) -> None:
        self._events: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def add(self, name: str, payload_bytes: int) -> None:
        self._events[name] += 1
        self._bytes[name] += payload_bytes

    @property
    def total(self) -> int:
        return self._events.total()

    def largest(self) -> tuple[Share, ...]:
        names = sorted(self._events, key=lambda name: (-self._events[name], -self._bytes[name], name))
        return tuple(Share(name=name, events=self._events[name], bytes=self._bytes[name]) for name in names[:SAMPLE_SHARES])


def _sizes(sizes: list[int]) -> PayloadSizes:
    counts: Counter[int] = Counter()
    for size in sizes:
        bound = 64
        while bound < size:
            bound *= 4
        counts[bound] += 1
    return PayloadSizes(bytes=sum(sizes), largest=max(sizes, default=0), up_to=tuple(sorted(counts.items())))


def rates(conn: Connection, now: datetime, spans: Iterable[tuple[timedelta, int]]) -> list[EventRate]:
    """For each (step, number of steps): how many events were appended in each step before `now`, exact to a thousandth."""
    known = _Known(conn, to_us(now))
    return [known.rate(now, step, number) for step, number in spans]


class _Known:
    """What is known of when positions were given: some of them with their times, both rising, more as they are asked for.

    Before the first stands 0, at the time when the first session was made; behind the last the next position to be given, at
    the time when the last one was removed, or else now.
    """

    def __init__(self, conn: Connection, now_us: int) -> None:
        created_at, removed_at, last = edges = conn.exec_driver_sql(_EDGES.on(conn)).one()
        if not all(edge is None or isinstance(edge, int) for edge in edges):
            raise damaged(conn, "a count or a time of it is no number")
        self._conn = conn
        self._has_gap = self._has_disorder = False
        self._positions: list[int] = [0, last + 1]
        start = min(now_us if created_at is None else created_at, now_us)
        newest = self._look(_DOWN, low=0, middle=last)
        end = now_us if removed_at is None or (newest is not None and newest[0] == last) else removed_at
        self._times: list[int] = [start, max(start, end)]
        if newest is not None:
            oldest = self._look(_UP, middle=0, high=last + 1) or newest
            self._times = [min(start, oldest[1]), max(end, newest[1])]
            for found in {oldest, newest}:
                self._note(*found)

    def rate(self, now: datetime, step: timedelta, number: int) -> EventRate:
        edges = [to_us(now - step * back) for back in range(number, -1, -1)]
        near = max((self._before(edges[-1], 1) - self._before(edges[0], 1)) // RATE_PARTS, 1)
        self._has_gap = False
        before = [self._before(edge, near) for edge in edges]
        counts = tuple(after - earlier for earlier, after in pairwise(before))
        return EventRate(counts=counts, step=step, until=now, is_estimate=self._has_gap or self._has_disorder)

    def _before(self, moment: int, near: int) -> int:
        """How many positions were given before that time: found to within `near` of them, or as far as it is known."""
        while True:
            place = bisect_left(self._times, moment)
            if place == 0:
                return self._positions[0]
            if place == len(self._times):
                return self._positions[-1] - 1
            low, high = self._positions[place - 1], self._positions[place]
            if high - low <= near or not self._halve(low, high):
                break
        start, end = self._times[place - 1], self._times[place]
        if high - low > near:
            self._has_gap = True
        return low + (high - 1 - low) * (moment - start) // (end - start)

    def _halve(self, low: int, high: int) -> bool:
        """Learn of a position between these; False if none of them is retained."""
        middle = (low + high) // 2
        found = self._look(_DOWN, low=low, middle=middle) or self._look(_UP, middle=middle, high=high)
        if found is None:
            return False
        self._note(*found)
        return True

    def _look(self, sql: DriverText, **bounds: int) -> tuple[int, int] | None:
        found = self._conn.exec_driver_sql(sql.on(self._conn), bounds).fetchone()
        if found is not None and not isinstance(found[1], int):
            raise damaged(self._conn, f"the event at position {found[0]} has a time that is no number")
        return None if found is None else (found[0], found[1])

    def _note(self, position: int, time_us: int) -> None:
        place = bisect_left(self._positions, position)
        earliest, latest = self._times[place - 1], self._times[place]
        if not earliest <= time_us <= latest:
            self._has_disorder = True
        self._positions.insert(place, position)
        self._times.insert(place, min(max(time_us, earliest), latest))
