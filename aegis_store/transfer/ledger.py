"""What an import has learned of each session of its file, kept on disk, so that a file of any length needs flat memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from aegis_store.line_reader import SessionLine
from aegis_store.transfer.scratch import scratch

_TABLES: Final = """
CREATE TABLE session (
  number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, last_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL,
  store_id INTEGER, store_first_seq INTEGER, store_last_seq INTEGER,
  largest_bytes INTEGER NOT NULL DEFAULT 0, largest_seq INTEGER, outcome TEXT, reason TEXT
);
CREATE TABLE event_id (number INTEGER NOT NULL, event_id TEXT NOT NULL, PRIMARY KEY (number, event_id)) WITHOUT ROWID;
"""
_SELECT: Final = "SELECT number, last_seq, next_seq, store_id, store_first_seq, store_last_seq, reason, outcome FROM session"


class Held(NamedTuple):
    """What the store holds of a session. `id` is None for one that it has deleted: it then holds nothing after `last_seq`."""

    id: int | None
    first_seq: int
    last_seq: int


class Entry(NamedTuple):
    """A session: the number of its line, the range that the file holds, what the store held when it was checked.

    `next_seq` is the seq that its next event in the file must have. `reason`: why it is refused, if it is. `outcome`: the
    count of the report to which it belongs, once it was written.
    """

    number: int
    last_seq: int
    next_seq: int
    store_id: int | None
    store_first_seq: int | None
    store_last_seq: int | None
    reason: str | None
    outcome: str | None


class Ledger:
    """See `ledger`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def enter(self, line: SessionLine, held: Held | None, reason: str | None) -> bool:
        """Take the session up. False: its id stands already."""
        store = (None, None, None) if held is None else held
        done = self._connection.execute(
            "INSERT OR IGNORE INTO session (number, key, last_seq, next_seq, store_id, store_first_seq, store_last_seq, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (line.number, _key(line.session_id), line.last_seq, line.first_seq, *store, reason),
        )
        return bool(done.rowcount)

    def entry(self, session_id: str) -> Entry | None:
        row = self._connection.execute(f"{_SELECT} WHERE key = ?", (_key(session_id),)).fetchone()
        return None if row is None else Entry(*row)

    def advance(self, number: int) -> None:
        self._connection.execute("UPDATE session SET next_seq = next_seq + 1 WHERE number = ?", (number,))

    def incomplete(self) -> Entry | None:
        """A session of which the file does not hold all events that it should."""
        row = self._connection.execute(f"{_SELECT} WHERE next_seq <= last_seq ORDER BY number LIMIT 1").fetchone()
        return None if row is None else Entry(*row)

    def is_new_id(self, number: int, event_id: str) -> bool:
        """Whether the session had no event of that `event_id` so far. It has one from now on."""
        done = self._connection.execute("INSERT OR IGNORE INTO event_id VALUES (?, ?)", (number, event_id))
        return bool(done.rowcount)

    def note_size(self, number: int, seq: int, payload_bytes: int) -> None:
        """Remember the largest event that would be added."""
        self._connection.execute(
            "UPDATE session SET largest_bytes = ?, largest_seq = ? WHERE number = ? AND largest_bytes < ?",
            (payload_bytes, seq, number, payload_bytes),
        )

    def larger_than(self, limit_bytes: int) -> list[tuple[int, int, int]]:
        """Number, payload bytes and seq of the largest event of each session that has one over the limit."""
        query = "SELECT number, largest_bytes, largest_seq FROM session WHERE reason IS NULL AND largest_bytes > ?"
        found: list[tuple[int, int, int]] = self._connection.execute(query, (limit_bytes,)).fetchall()
        return found

    def refuse(self, number: int, reason: str) -> None:
        self._connection.execute("UPDATE session SET reason = ? WHERE number = ?", (reason, number))

    def settle(self, number: int, outcome: str) -> None:
        self._connection.execute("UPDATE session SET outcome = ? WHERE number = ?", (outcome, number))

    def outcomes(self) -> dict[str, int]:
        """How many of the sessions that were not refused came to which outcome."""
        query = "SELECT outcome, count(*) FROM session WHERE reason IS NULL AND outcome IS NOT NULL GROUP BY outcome"
        return dict(self._connection.execute(query).fetchall())

    def refusals(self) -> Iterator[tuple[str, str]]:
        """Id and reason, in the order of the file."""
        rows = self._connection.execute("SELECT key, reason FROM session WHERE reason IS NOT NULL ORDER BY number")
        for key, reason in rows:
            yield key.decode("utf-8", "surrogatepass"), reason


def _key(session_id: str) -> bytes:
    return session_id.encode("utf-8", "surrogatepass")  # a file may hold any text, SQLite takes no lone surrogates


@contextmanager
def ledger() -> Iterator[Ledger]:
    """An empty one; it goes with the block. `StoreFull` and `StoreUnavailable` when the temporary directory is of no use."""
    with scratch("notes") as connection:
        connection.executescript(_TABLES)
        connection.execute("BEGIN")
        yield Ledger(connection)
