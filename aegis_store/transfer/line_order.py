"""Whether the lines of a file follow each other as they should, each session with all of its events. Needs no store."""

import os
from collections.abc import Callable, Mapping
from typing import Final

from aegis_store.errors import shown
from aegis_store.events import Json
from aegis_store.line_reader import EventLine, LinesReader, SessionLine
from aegis_store.transfer.ledger import Entry, Held, Ledger, ledger

_PROGRESS_LINES: Final = 500


def check(file: str | os.PathLike[str], on_bytes: Callable[[int, int], None] | None = None) -> Mapping[str, Json]:
    """Read `file` to its end; what its first line says. Raises `ImportRejected` where an import would for the file's form.

    `on_bytes` is called with (bytes read, bytes to read).
    """
    with LinesReader(file) as reader, ledger() as notes:
        order = LineOrder(reader, notes)
        for line in reader.lines():
            if isinstance(line, SessionLine):
                order.take_session(line)
            else:
                order.take_event(line)
            if on_bytes is not None and line.number % _PROGRESS_LINES == 0:
                on_bytes(reader.bytes_read, reader.size_bytes)
        order.end()
        return reader.header


class LineOrder:
    """The lines of one reading, in the order of the file, noted in a ledger. Raises `ImportRejected` with the line."""

    def __init__(self, reader: LinesReader, notes: Ledger) -> None:
        self._reader = reader
        self._notes = notes

    def take_session(self, line: SessionLine, held: Held | None = None, reason: str | None = None) -> None:
        """`held` is what the store holds of it, `reason` why it is refused, if either is known."""
        if not self._notes.enter(line, held, reason):
            raise self._reader.rejected(f"session {shown(line.session_id)} stands twice", line.number)

    def take_event(self, line: EventLine) -> Entry:
        """The event's session, as it was before it."""
        entry = self._notes.entry(line.session_id)
        if entry is None:
            raise self._reader.rejected(f"an event of session {shown(line.session_id)}, which no line above names", line.number)
        if line.seq != entry.next_seq or line.seq > entry.last_seq:
            raise self._reader.rejected(_disorder(line, entry), line.number)
        self._notes.advance(entry.number)
        return entry

    def end(self) -> None:
        lacking = self._notes.incomplete()
        if lacking is not None:
            missing = f"events {lacking.next_seq} to {lacking.last_seq} of this session are missing"
            raise self._reader.rejected(missing, lacking.number)


def _disorder(line: EventLine, entry: Entry) -> str:
    whose = f"seq {line.seq} of session {shown(line.session_id)}"
    if line.seq < entry.next_seq:
        return f"{whose} stands twice, or too late"
    if entry.next_seq > entry.last_seq:
        return f"{whose}, of which the file should hold no event after {entry.last_seq}"
    return f"a gap: {whose}, where {entry.next_seq} should come"
