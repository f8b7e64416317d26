"""Reading the JSON lines that `lines` describes: one line at a time, each checked for its form, none for what it means."""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from aegis_store import payload as payloads
from aegis_store.errors import ImportRejected, shown
from aegis_store.events import Json
from aegis_store.json_problem import said_of
from aegis_store.lines import FORMAT, MAX_LINE_BYTES, MAX_SEQ, VERSION
from aegis_store.packing import Damaged, unpacked
from aegis_store.settings import MAX_TEXT_BYTES
from aegis_store.target import is_open_here

_INT64: Final = 2**63 - 1
_FIELDS: Final = {
    "session": {
        *("session_id", "tenant", "owner", "status", "max_events", "hold", "first_seq", "last_seq", "removed_bytes"),
        *("created_at", "updated_at", "ended_at", "last_event_at", "removed_at", "removed_reason", "metadata"),
    },
    "event": {
        *("session_id", "seq", "position", "type", "occurred_at", "recorded_at"),
        *("event_id", "run_id", "payload_ref", "payload"),
    },
    "end": {"sessions", "events"},
}


class SessionLine(NamedTuple):
    """A session of the file. Names, numbers and the range are checked, the values of `fields` are not."""

    number: int
    session_id: str
    first_seq: int
    last_seq: int
    removed_bytes: int
    fields: dict[str, Json]


class EventLine(NamedTuple):
    """An event of the file. Names and numbers are checked, the values of `fields` are not."""

    number: int
    session_id: str
    seq: int
    fields: dict[str, Json]
    payload_text: str


class LinesReader:
    """Reads such a file, plain, gzip or zstd whatever its name, one line at a time. A context manager.

    Entering and reading raise `ImportRejected` with the number of the line: the file cannot be read, is damaged, cut off, of
    another format or version, or has a line that is not one of the format.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file = os.fspath(file)
        self.header: dict[str, Json] = {}
        self.size_bytes = 0
        self._number = 0

    def __enter__(self) -> Self:
        try:
            self._open()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        try:
            self._check_header(next(self._texts(), ""))
        except BaseException:
            self._raw.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._raw.close()

    def _open(self) -> None:
        if is_open_here(self.file):
            raise self.rejected("it is a store that is open here")
        # Before it is opened: opening a pipe would wait for its other end.
        if not stat.S_ISREG(os.stat(self.file).st_mode):
            raise self.rejected("it is not a file that can be read twice")
        self._raw = Path(self.file).open("rb")  # noqa: SIM115 - __exit__ closes it
        self.size_bytes = os.fstat(self._raw.fileno()).st_size

    @property
    def bytes_read(self) -> int:
        """How far the file was read, of its `size_bytes`."""
        return min(self._raw.tell(), self.size_bytes)

    def rejected(self, detail: str, number: int | None = None) -> ImportRejected:
        """The error for that line, by default the one that was read last."""
        number = self._number if number is None else number
        return ImportRejected(file=self.file, place=f"line {number}" if number else "at its start", detail=detail)

    def lines(self) -> Iterator[SessionLine | EventLine]:
        """The lines from the first session on; each call begins anew. The file is complete when this comes to its end."""
        texts = self._texts()
        self._check_header(next(texts, ""))
        counts = {"sessions": 0, "events": 0}
        ended = False
        for text in texts:
            if ended:
                raise self.rejected("something follows after its end")
            kind, fields, payload_text = self._parsed(text)
            if kind == "end":
                ended = True
                if fields != counts or any(isinstance(count, bool) for count in fields.values()):
                    raise self.rejected(f"it should hold {_counts_text(fields)}, and {_counts_text(counts)} were found")
            else:
                counts[f"{kind}s"] += 1
                yield self._session(fields) if kind == "session" else self._event(fields, payload_text)
        if not ended:
            raise self.rejected("it is cut off: its last line is missing")

    def _texts(self) -> Iterator[str]:
        self._number = 0
        try:
            self._raw.seek(0)
            with unpacked(self._raw) as stream:
                while True:
                    self._number += 1
                    content = stream.readline(MAX_LINE_BYTES + 1)
                    if len(content) > MAX_LINE_BYTES:
                        raise self.rejected(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
                    if not content:
                        return
                    yield content.decode()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError | ValueError) -> ImportRejected:
        if isinstance(error, Damaged):
            return self.rejected(str(error))
        if isinstance(error, UnicodeDecodeError):
            return self.rejected("it is not UTF-8")
        return self.rejected(f"it cannot be read: {getattr(error, 'strerror', None) or error}")

    def _check_header(self, text: str) -> None:
        try:
            header = payloads.decode(text)
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise self.rejected("its first line is not that of an export or archive of a store")
        version = header.get("version")
        if version != VERSION or isinstance(version, bool):
            raise self.rejected(
                f"this reads version {VERSION} of the format, and the file says version {shown(version)}: "
                "use the version of aegis-store that wrote it, or a newer one"
            )
        if not isinstance(header.get("policy"), dict | None):
            raise self.rejected(f"policy must be an object or null, not {shown(header['policy'])}")
        self.header = header

    def _parsed(self, text: str) -> tuple[str, dict[str, Json], str]:
        try:
            kind, fields, payload_text = _parsed_line(text)
        except (ValueError, RecursionError) as error:
            raise self.rejected(said_of(error) if isinstance(error, ValueError) else "it is nested too deeply") from None
        missing, unknown = sorted(_FIELDS[kind] - fields.keys()), sorted(fields.keys() - _FIELDS[kind])
        if missing or unknown:
            problem = f"has no {missing[0]}" if missing else f"has an unknown field, {shown(unknown[0])}"
            raise self.rejected(f"the line of {'the end' if kind == 'end' else f'the {kind}'} {problem}")
        return kind, fields, payload_text

    def _session(self, fields: dict[str, Json]) -> SessionLine:
        first_seq = self._number_of(fields, "first_seq", 1, MAX_SEQ + 1)
        last_seq = self._number_of(fields, "last_seq", first_seq - 1, MAX_SEQ)
        removed_bytes = self._number_of(fields, "removed_bytes", 0, _INT64)
        return SessionLine(self._number, self._id_of(fields), first_seq, last_seq, removed_bytes, fields)

    def _event(self, fields: dict[str, Json], payload_text: str) -> EventLine:
        seq = self._number_of(fields, "seq", 1, MAX_SEQ)
        self._number_of(fields, "position", 1, _INT64)
        return EventLine(self._number, self._id_of(fields), seq, fields, payload_text)

    def _id_of(self, fields: dict[str, Json]) -> str:
        session_id = fields["session_id"]
        if not isinstance(session_id, str):
            raise self.rejected(f"session_id must be text, not {shown(session_id)}")
        if len(session_id) > MAX_TEXT_BYTES:  # many of them would fill the memory before each is refused
            raise self.rejected(f"session_id must be {MAX_TEXT_BYTES} bytes at the most, not {shown(session_id)}")
        return session_id

    def _number_of(self, fields: dict[str, Json], name: str, low: int, high: int) -> int:
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.rejected(f"{name} must be a whole number from {low:,} to {high:,}, not {shown(value)}")
        return value


def _counts_text(counts: Mapping[str, Json]) -> str:
    return f"{shown(counts['sessions'])} sessions and {shown(counts['events'])} events"


# Lines are taken apart here, and not by `json.loads`, for the text of the payload as it stands, and since that would let a
# later member replace an earlier one of the same name.

_KIND: Final = re.compile(r'[ \t\r\n]*\{[ \t\r\n]*"(session|event|end)"[ \t\r\n]*:[ \t\r\n]*\{')
_NAME: Final = re.compile(r'[ \t\r\n]*"([^"\\]*)"[ \t\r\n]*:[ \t\r\n]*')
_NEXT: Final = re.compile(r"[ \t\r\n]*([,}])")
_END: Final = re.compile(r"[ \t\r\n]*\}[ \t\r\n]*\Z")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


def _parsed_line(text: str) -> tuple[str, dict[str, Json], str]:
    """What kind of line it is, its members, and the text of its payload if it has one. `ValueError` if it is malformed."""
    kind = _KIND.match(text)
    if kind is None:
        raise ValueError("the line is neither a session nor an event nor the end, or is cut off")
    fields: dict[str, Json] = {}
    payload_text, at, more = "", kind.end(), True
    while more:
        name = _NAME.match(text, at)
        if name is None:
            raise _malformed("a name is expected", at)
        if name[1] in fields:
            raise ValueError(f"{shown(name[1])} stands twice")
        try:
            fields[name[1]], at = _decode(text, name.end())
        except json.JSONDecodeError as error:
            raise _malformed(error.msg, error.pos) from None
        if name[1] == "payload":
            payload_text = text[name.end() : at]
        following = _NEXT.match(text, at)
        if following is None:
            raise _malformed("a comma or a closing brace is expected", at)
        at, more = following.end(), following[1] == ","
    if _END.match(text, at) is None:
        raise _malformed("a closing brace and the end are expected", at)
    return kind[1], fields, payload_text


def _malformed(problem: str, at: int) -> ValueError:
    return ValueError(f"the line is not well-formed JSON, or is cut off: {problem} at character {at + 1}")
