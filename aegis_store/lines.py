"""The JSON lines in which sessions and events leave a store, as an export or as an archive of what a prune removes.

    {"format": "aegis-store", "version": 1, "written_at": …, "policy": {…} or null, …}
    {"session": {"session_id": …, "first_seq": 1, "last_seq": 2, …}}       each before its events
    {"event": {"session_id": …, "seq": 1, …, "payload": …}}
    {"end": {"sessions": 1, "events": 2}}                                  so that a file that was cut off is noticed

UTF-8, one JSON document a line. `first_seq` to `last_seq` of a session are the events that the file holds of it, all of
them. Payloads stand as the store holds them, byte for byte, so that they come back as they were. `line_reader` reads it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Row

from aegis_store import payload as payloads
from aegis_store.checksum import event_is_intact
from aegis_store.draft import Draft, path_of
from aegis_store.errors import FileUnavailable, StoreCorrupt, shown
from aegis_store.events import Json, from_us
from aegis_store.packing import Damaged, packer_for, unpacked
from aegis_store.sessions import cap_of
from aegis_store.settings import MAX_EVENT_BYTES_LIMIT

FORMAT: Final = "aegis-store"
VERSION: Final = 1

MAX_LINE_BYTES: Final = MAX_EVENT_BYTES_LIMIT + 4 * 1024 * 1024
"""The longest line: the largest payload of a store with its ids, and some. A reader holds one line at a time."""

MAX_SEQ: Final = 10**12  # the schema's own bound

_CHUNK_BYTES: Final = 256 * 1024

_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_to_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode

# White space between two values; inside of a text JSON does not allow these. So a payload that was written by hand over
# several lines stays on one, and keeps its size.
_LINE_ENDS: Final = str.maketrans("\r\n", "  ")


class LinesWriter:
    """Writes one such file. A context manager: when its block ends well, the file is synced, read back and stands under
    its name; when the block raises, nothing is left. `sessions`, `events` and `file_bytes` say what was written.

    Entering raises `InvalidInput` if the name is taken or its suffix is not .jsonl, .jsonl.gz or .jsonl.zst. Writing and
    ending raise `StoreFull` when the disk is full, `FileUnavailable` when the file cannot be written or is read back as
    something else, `StoreCorrupt` when the rows are not what a store holds. Memory is flat: one line and a buffer.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Mapping[str, Json] | None = None, *, store: str | None = None
    ) -> None:
        """`header`: what the first line says besides the format and the time. `store`: the name of the store in errors."""
        self.path = path_of(path)
        self.sessions = 0
        self.events = 0
        self.file_bytes = 0
        self._store = store or "the store"
        self._header = header
        self._packer = packer_for(self.path.name)
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._promised = 0
        self._latest: Row[Any] | None = None

    def __enter__(self) -> Self:
        self._draft = Draft(self.path)
        try:
            start = {"format": FORMAT, "version": VERSION, "written_at": datetime.now(UTC).isoformat(), "policy": None}
            self._write_line(_to_ascii({**start, **(self._header or {})}))
        except BaseException:
            self._draft.discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._seal()
        finally:
            self._draft.discard()

    def session(self, row: Row[Any], first_seq: int, last_seq: int, removed_bytes: int) -> None:
        """Write a row of the table `session`, of which this file will hold the events `first_seq` to `last_seq`.

        `removed_bytes` are the payload bytes of its events below `first_seq`.
        """
        fields = {
            "session_id": row.session_id,
            "tenant": row.tenant,
            "owner": row.owner,
            "status": row.status,
            "max_events": _written_cap(row.max_events),
            "hold": bool(row.hold),
            "first_seq": first_seq,
            "last_seq": last_seq,
            "removed_bytes": removed_bytes,
            **{name: self._time(getattr(row, name)) for name in ("created_at", "updated_at", "ended_at")},
            **{name: self._time(getattr(row, name)) for name in ("last_event_at", "removed_at")},
            "removed_reason": row.removed_reason,
        }
        metadata = self._embedded(row.metadata, f"metadata of session {shown(row.session_id)}")
        self._write_line(f'{{"session":{_to_text(fields)[:-1]},"metadata":{metadata}}}}}')
        self.sessions += 1
        self._promised += last_seq - first_seq + 1
        self._latest = row

    def event(self, row: Row[Any], session_id: str | None = None) -> None:
        """Write a row of the table `event`, read together with `STORE_NUMBER`.

        `session_id` may be left out if it belongs to the session written last.
        """
        if session_id is None:
            if self._latest is None or self._latest.id != row.session:
                raise ValueError("an event without a session_id must belong to the session that was written last")
            session_id = str(self._latest.session_id)
        fields = {
            "session_id": session_id,
            "seq": row.seq,
            "position": row.position,
            "type": row.type,
            "occurred_at": self._time(row.occurred_at),
            "recorded_at": self._time(row.recorded_at),
            "event_id": row.event_id,
            "run_id": row.run_id,
            "payload_ref": row.payload_ref,
        }
        self._check_sum(row, session_id)
        payload = self._embedded(row.payload, f"payload of event {row.seq} of session {shown(session_id)}")
        self._write_line(f'{{"event":{_to_text(fields)[:-1]},"payload":{payload}}}}}')
        self.events += 1

    def _check_sum(self, row: Row[Any], session_id: str) -> None:
        if not event_is_intact(session_id, row):
            what = f"event {row.seq} of session {shown(session_id)}"
            raise self._corrupt(f"{what} is not what was written: its checksum differs, or its columns are shifted")

    def _time(self, us: int | None) -> str | None:
        try:
            return None if us is None else from_us(us).isoformat(timespec="microseconds")
        except (OverflowError, TypeError):
            raise self._corrupt(f"{shown(us)} is no time of the years 1 to 9999") from None

    def _embedded(self, text: str, what: str) -> str:
        """JSON of the store as it may stand in a line. It is looked at first, so that the file can be read again."""
        try:
            payloads.decode(text)
        except ValueError as error:
            raise self._corrupt(f"{what}: {error}") from None
        return text.translate(_LINE_ENDS) if "\n" in text or "\r" in text else text

    def _corrupt(self, detail: str) -> StoreCorrupt:
        return StoreCorrupt(store=self._store, detail=detail)

    def _write_line(self, text: str) -> None:
        content = text.encode()
        if len(content) >= MAX_LINE_BYTES:
            raise FileUnavailable(
                file=str(self.path),
                detail=f"a line of {len(content):,} bytes could not be read again (at most {MAX_LINE_BYTES:,})",
            )
        self._buffer += content
        self._buffer += b"\n"
        if len(self._buffer) >= _CHUNK_BYTES:
            self._write_buffer()

    def _write_buffer(self) -> None:
        content = bytes(self._buffer)
        self._buffer.clear()
        self._digest.update(content)
        self._draft.write(self._packer.compress(content))

    def _seal(self) -> None:
        if self.events != self._promised:
            raise self._corrupt(f"its sessions should hold {self._promised:,} events, and {self.events:,} were found")
        self._write_line(_to_ascii({"end": {"sessions": self.sessions, "events": self.events}}))
        self._write_buffer()
        self._draft.write(self._packer.flush())
        if self._digest_of_file() != self._digest.digest():
            raise FileUnavailable(file=str(self.path), detail="what is read back is not what was written: check the disk")
        self._draft.publish()
        self.file_bytes = self._draft.size_bytes

    def _digest_of_file(self) -> bytes | None:
        digest = hashlib.sha256()
        try:
            with self._draft.reopened() as raw, unpacked(raw) as stream:
                while content := stream.read(_CHUNK_BYTES):
                    digest.update(content)
        except (Damaged, OSError):
            return None
        return digest.digest()


def _written_cap(stored: int | None) -> int | str | None:
    if stored is None:
        return None
    cap = cap_of(stored)
    return cap if isinstance(cap, int) else cap.value
