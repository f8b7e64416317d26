"""Reading a state file of the orchestrator (`version: 1`) in flat memory.

The file mixes the events of all sessions, so they are staged on disk, in a temporary SQLite file, from which each session's
events come back in order.
"""

import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aegis_store.errors import ImportRejected, shown
from aegis_store.events import Json
from aegis_store.json_problem import said_of
from aegis_store.target import is_open_here
from aegis_store.transfer.json_text import JsonText
from aegis_store.transfer.rest import Rest, rest_file
from aegis_store.transfer.scratch import scratch

VERSION: Final = 1
_MAX_PARTS: Final = 1000
_GZIP_MAGIC: Final = b"\x1f\x8b"

OnBytes = Callable[[int, int], None]
"""Called with (bytes of the file read so far, bytes of the file)."""


class StagedState:
    """A state file that was read to its end: its sessions, their events by rising seq, and what it holds besides."""

    def __init__(self, connection: Any, not_taken: Counter[str]) -> None:
        self._connection = connection
        self.not_taken = dict(not_taken)

    def session_count(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM session").fetchone()[0])

    def event_count(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM event").fetchone()[0])

    def sessions(self) -> Iterator[tuple[Json, int]]:
        """Each session as in the file, with how many stand under its id: 1, or 2 for that and more."""
        others = "SELECT 1 FROM session AS other WHERE other.key = session.key LIMIT 2"
        query = f"SELECT record, (SELECT count(*) FROM ({others})) FROM session"
        for record, count in self._connection.execute(f"{query} ORDER BY rowid"):
            yield json.loads(record), count

    def events(self, session_id: Json) -> Iterator[Json]:
        """The events of that session by rising `eventSeq`, those without a proper one first."""
        query = "SELECT record FROM event WHERE key = ? ORDER BY seq, rowid"
        for (record,) in self._connection.execute(query, (_key(session_id),)):
            yield json.loads(record)

    def ownerless(self) -> Iterator[tuple[Json, int]]:
        """Session ids of events whose session the file does not hold, with the number of events."""
        query = "SELECT key, count(*) FROM event WHERE key NOT IN (SELECT key FROM session) GROUP BY key ORDER BY key"
        for key, count in self._connection.execute(query):
            yield json.loads(key), count


@contextmanager
def staged(
    file: str | os.PathLike[str], on_bytes: OnBytes | None = None, *, rest: str | os.PathLike[str] | None = None
) -> Iterator[StagedState]:
    """The state file, staged; the staging goes with the block. Plain or gzip, whatever its name.

    `rest` names a new file for the parts that are not taken (see `rest`); it is there once the block has ended well.

    Raises `ImportRejected` with the place when it is not well-formed JSON, cut off, or not a state file; for `rest`
    `InvalidInput` if the name is taken, `StoreFull` and `FileUnavailable` if it cannot be written.
    """
    if is_open_here(file):
        raise ImportRejected(file=os.fspath(file), place="at its start", detail="it is a store that is open here")
    with rest_file(rest) as out, scratch("staging") as connection:
        connection.execute("CREATE TABLE session (key TEXT NOT NULL, record TEXT NOT NULL)")
        connection.execute("CREATE TABLE event (key TEXT NOT NULL, seq INTEGER, record TEXT NOT NULL)")
        connection.execute("BEGIN")
        not_taken = _Reader(os.fspath(file), connection, out).read(on_bytes)
        connection.execute("CREATE INDEX event_by_seq ON event (key, seq)")
        connection.execute("CREATE INDEX session_by_key ON session (key)")
        connection.execute("COMMIT")
        yield StagedState(connection, not_taken)


def _key(session_id: Json) -> str:
    # As JSON: so that any value can be a key, a text with lone surrogates too.
    return json.dumps(session_id, sort_keys=True)


class _Reader:
    """One reading of one file. `place` says how far it has come."""

    def __init__(self, file: str, connection: Any, rest: Rest) -> None:
        self.file = file
        self.connection = connection
        self.rest = rest
        self.place = "at its start"
        self.not_taken: Counter[str] = Counter()

    def read(self, on_bytes: OnBytes | None) -> Counter[str]:
        try:
            with Path(self.file).open("rb") as raw:
                is_gzip = raw.peek(2)[:2] == _GZIP_MAGIC
                content = _Progress(raw, os.fstat(raw.fileno()).st_size, on_bytes)
                self._read_top(JsonText(gzip.GzipFile(fileobj=content) if is_gzip else content))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._rejected(f"the gzip data is cut off or damaged: {error}") from None
        except RecursionError:
            raise self._rejected("it is nested too deeply") from None
        except ValueError as error:
            raise self._rejected(f"it is not well-formed JSON: {said_of(error)}") from None
        except OSError as error:
            raise self._rejected(f"it cannot be read: {error.strerror}") from None
        return self.not_taken

    def _rejected(self, detail: str) -> ImportRejected:
        return ImportRejected(file=self.file, place=self.place, detail=detail)

    def _read_top(self, text: JsonText) -> None:
        seen: set[str] = set()
        version: Json = None
        for name in text.members():
            self.place = f"at {shown(name)[1:-1]}"
            if name in seen or len(seen) == _MAX_PARTS:
                raise self._rejected("it stands twice" if name in seen else f"there are more than {_MAX_PARTS} parts")
            seen.add(name)
            if name == "version":
                version = text.value()
            elif stage := {"sessions": self._stage_session, "events": self._stage_event}.get(name):
                self._stage_list(name, text, stage)
            else:
                with self.rest.part(name, text):
                    self._count(name, text)
        self.place = "at its end"
        if version != VERSION or isinstance(version, bool):
            raise self._rejected(f"this reads version {VERSION} of the format, and the file says version {shown(version)}")
        missing = sorted({"sessions", "events"} - seen)
        if missing:
            raise self._rejected(f"it has no {' and no '.join(missing)}, so it is no state file")

    def _stage_list(self, name: str, text: JsonText, stage: Callable[[dict[str, Json]], None]) -> None:
        if text.peek() != "[":
            raise self._rejected(f"{name} is not a list")
        for index, item in enumerate(text.items()):
            self.place = f"after {name}[{index}]"
            if not isinstance(item, dict):
                raise self._rejected(f"{name}[{index}] is not an object")
            stage(item)

    def _count(self, name: str, text: JsonText) -> None:
        """Read the value of a part that is not taken, a list item by item."""
        if text.peek() != "[":
            text.value()
            self.not_taken[name] = 1
            return
        self.not_taken[name] = 0
        for index, _ in enumerate(text.items()):
            self.place = f"after {shown(name)[1:-1]}[{index}]"
            self.not_taken[name] += 1

    def _stage_session(self, record: dict[str, Json]) -> None:
        row = (_key(record.get("id")), json.dumps(record))
        self.connection.execute("INSERT INTO session VALUES (?, ?)", row)

    def _stage_event(self, record: dict[str, Json]) -> None:
        seq = record.get("eventSeq")
        proper = isinstance(seq, int) and not isinstance(seq, bool) and 0 < seq < 2**63
        row = (_key(record.get("sessionId")), seq if proper else None, json.dumps(record))
        self.connection.execute("INSERT INTO event VALUES (?, ?, ?)", row)


class _Progress(io.BufferedIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, raw: io.BufferedReader, total: int, on_bytes: OnBytes | None) -> None:
        self._raw = raw
        self._total = total
        self._on_bytes = on_bytes
        self._done = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = self._raw.read(size)
        self._done += len(content)
        if self._on_bytes is not None:
            self._on_bytes(self._done, max(self._done, self._total))
        return content
