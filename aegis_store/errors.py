"""Everything that the store raises.

    AegisStoreError
    ├── InvalidInput (also a ValueError)      what was passed cannot be taken; nothing was written
    │   ├── InvalidSession
    │   ├── InvalidPolicy
    │   └── InvalidEvent
    │       └── EventTooLarge
    ├── SessionNotFound                       the store does not hold what was named
    ├── SessionExists
    ├── OutOfScope                            a scoped store does not do what concerns the whole one
    ├── SequenceConflict                      an append that must not happen
    ├── EventIdConflict
    ├── RedactionFailed                       the redact hook raised; nothing was written
    ├── EventsTruncated                       a cursor that cannot be honoured
    ├── CursorAhead
    ├── StoreBusy                             the store cannot do it now
    ├── StoreFull
    ├── StoreUnavailable
    ├── StoreClosed
    ├── ReadOnlyStore
    ├── FileUnavailable                       a file beside the store (an export, an archive) cannot be written
    ├── NotAnAegisStore                       the file is refused, and left as it is
    ├── StoreCorrupt
    ├── SchemaMismatch
    └── ImportRejected                        a file to import is refused as a whole

Each has fields, and a message that says what happened, which value (`what`), and what a program can do next (`hint`). Values
appear in messages as `repr` writes them, shortened, and no message carries a control character. Payloads never appear.
"""

from datetime import datetime
from typing import Any, Self

_SHOWN_CHARACTERS = 120


def shown(value: object) -> str:
    """`value` as it may stand in a message: quoted, printable, shortened."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - whole numbers of over 4,300 digits, and objects that want to do harm
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def shown_path(path: str) -> str:
    """A path likewise, shortened at its start: its end tells files of one directory apart."""
    text = repr(path)
    return text if len(text) <= _SHOWN_CHARACTERS else f"'…{text[-_SHOWN_CHARACTERS:]}"


def printable(text: str) -> str:
    """`text` with everything escaped that is not visible: control and escape characters, text direction, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(number: int, noun: str) -> str:
    """So many of them, as a sentence says it."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class AegisStoreError(Exception):
    """The base of all errors of this package. No other exception of the database reaches a caller.

    `what` is what happened, `hint` what to do about it in terms of the library, if there is something; the message is both.
    """

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        # What SQLite says of a file, or a reason that came with an import, may hold anything.
        self.what = printable(what)
        self.hint = hint
        super().__init__(f"{self.what}: {hint}" if hint else self.what)

    def __reduce__(self) -> tuple[Any, ...]:
        # Fields are keyword-only, which the default way of pickling an exception does not know.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[AegisStoreError], args: tuple[Any, ...], fields: dict[str, Any]) -> AegisStoreError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class InvalidInput(AegisStoreError, ValueError):
    """An argument cannot be taken. Nothing was written."""


class InvalidSession(InvalidInput):
    """A session's id, tenant, owner, status or metadata cannot be taken. Nothing was written."""


class InvalidPolicy(InvalidInput):
    """A retention policy, or a session's own limit, cannot be taken. The one in force stays.

    `rule` is what the value of a knob must be, if it is one that is wrong.
    """

    rule: str | None = None

    @classmethod
    def of(cls, knob: str, rule: str, value: str) -> Self:
        error = cls(f"{knob} {rule}, not {value}")
        error.rule = rule
        return error


class InvalidEvent(InvalidInput):
    """An event cannot be stored as it is, so it was not stored at all.

    `path` leads to the place, for instance `payload.content[0].text`.
    """

    path: str
    problem: str

    @classmethod
    def at(cls, path: str, problem: str) -> Self:
        error = cls(f"{path if len(path) <= 120 else f'{path[:60]}…{path[-50:]}'} {problem}")
        error.path = path
        error.problem = problem
        return error

    def below(self, step: str) -> Self:
        """The same error, of an event that is part of something: `events[3]`, say."""
        return type(self).at(f"{step}.{self.path}", self.problem)


class EventTooLarge(InvalidEvent):
    """A payload is larger than the policy's `max_event_bytes`. The event was not stored.

    `payload_bytes` is the size as JSON in UTF-8, a lower bound of it where counting stopped early.
    """

    def __init__(self, *, payload_bytes: int, max_event_bytes: int, path: str = "payload") -> None:
        self.path = path
        self.payload_bytes = payload_bytes
        self.max_event_bytes = max_event_bytes
        self.problem = (
            f"of {payload_bytes:,} bytes is over the limit of {max_event_bytes:,} (max_event_bytes): "
            "keep the bulk elsewhere and point to it with payload_ref, or raise the limit in the retention policy"
        )
        super().__init__(f"{path} {self.problem}")

    def below(self, step: str) -> "EventTooLarge":
        return EventTooLarge(payload_bytes=self.payload_bytes, max_event_bytes=self.max_event_bytes, path=f"{step}.{self.path}")


class SessionNotFound(AegisStoreError):
    """The store holds no session of that id."""

    def __init__(self, *, session_id: object) -> None:
        self.session_id = session_id
        super().__init__(f"no session {shown(session_id)} in this store", hint="create_session or ensure_session makes it")


class SessionExists(AegisStoreError):
    """The id is taken. By whom is not said."""

    def __init__(self, *, session_id: str) -> None:
        self.session_id = session_id
        hint = "choose another, or use ensure_session with the same tenant and owner"
        super().__init__(f"session id {shown(session_id)} is taken", hint=hint)


class OutOfScope(AegisStoreError):
    """`method`, which was called on a scoped store, concerns what others have as well. Nothing was done."""

    def __init__(self, *, method: str) -> None:
        self.method = method
        super().__init__(f"{method} is for the whole store, not for a scope of it", hint="call it on the store itself")


class SequenceConflict(AegisStoreError):
    """The session's `last_seq` is not the expected one. Nothing was appended."""

    def __init__(self, *, session_id: str, expected: int, actual: int) -> None:
        self.session_id = session_id
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"session {shown(session_id)} is at seq {actual}, not at {expected} as expected",
            hint="read what came in between, then append with the new last_seq",
        )


class EventIdConflict(AegisStoreError):
    """There is another event of that `event_id`. Nothing was appended.

    `seq`: where the session holds it; None if it is in the same batch. `path`: which event of a batch is in conflict,
    `events[3]`, say; None for one that was appended alone.
    """

    def __init__(
        self, *, session_id: str, event_id: str, seq: int | None, path: str | None = None, other_path: str | None = None
    ) -> None:
        self.session_id = session_id
        self.event_id = event_id
        self.seq = seq
        self.path = path
        where = f"is that of {other_path}" if seq is None else f"stands in session {shown(session_id)} at seq {seq}"
        super().__init__(
            f"{f'{path}.' if path else ''}event_id {shown(event_id)} {where} with other content",
            hint="repeat an append with the same type, payload, run_id and payload_ref, or use a new event_id",
        )

    def below(self, step: str, *, other_path: str | None = None) -> "EventIdConflict":
        """The same error, of an event of a batch; `other_path`: with that one, of the same batch."""
        seq = None if other_path else self.seq
        return EventIdConflict(session_id=self.session_id, event_id=self.event_id, seq=seq, path=step, other_path=other_path)


class RedactionFailed(AegisStoreError):
    """The redact hook raised for an event, so it was not stored, and nothing that was to be stored with it.

    `detail` says what was raised, and where; not its words, which may quote the payload.
    """

    def __init__(self, *, session_id: str, type: str, detail: str) -> None:
        self.session_id = session_id
        self.type = type
        self.detail = detail
        super().__init__(
            f"the redact hook raised {detail}, for an event of type {shown(type)} of session {shown(session_id)}: "
            "the event was not stored",
            hint="mend the hook, then append it again",
        )


class EventsTruncated(AegisStoreError):
    """Events above the cursor were removed before they were read.

    For a session, `requested_seq` is the cursor and `first_seq` to `last_seq` the retained range (empty when
    `first_seq` is `last_seq + 1`). For the whole store (`session_id` None) all three are positions: `first_seq` is
    the one after the last removal, from which on nothing is missing.
    """

    def __init__(
        self,
        *,
        session_id: str | None,
        requested_seq: int,
        first_seq: int,
        last_seq: int,
        removed_at: datetime | None,
        reason: str | None,
    ) -> None:
        self.session_id = session_id
        self.requested_seq = requested_seq
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.removed_at = removed_at
        self.reason = reason
        if session_id is None:
            what = f"events of the store after position {requested_seq} were removed, the last of them before {first_seq}"
        else:
            kept = f"{first_seq}..{last_seq}" if first_seq <= last_seq else "none"
            what = f"events of session {shown(session_id)} after seq {requested_seq} were removed; retained: {kept}"
        when = f", the last at {removed_at.isoformat()}" if removed_at else ""
        why = f" because of {reason}" if reason else ""
        super().__init__(f"{what}{when}{why}", hint="pass on_gap='skip' to go on with what is retained")


class CursorAhead(AegisStoreError):
    """The cursor lies beyond the last event: a cursor of another store, or of this one before a restore."""

    def __init__(self, *, session_id: str | None, requested_seq: int, last_seq: int) -> None:
        self.session_id = session_id
        self.requested_seq = requested_seq
        self.last_seq = last_seq
        whose = f"session {shown(session_id)}" if session_id is not None else "the store"
        super().__init__(
            f"cursor {requested_seq} is beyond the last event of {whose}, {last_seq}, so it belongs to another store or to "
            "a time before a restore",
            hint="read again from the start (no cursor)",
        )


class StoreBusy(AegisStoreError):
    """Others held the store for longer than the busy timeout, or have it open where it must be closed. Nothing was written."""

    def __init__(self, *, store: str, waited_ms: int, detail: str | None = None) -> None:
        self.store = store
        self.waited_ms = waited_ms
        self.detail = detail or f"was held by another writer for {waited_ms:,} ms"
        super().__init__(f"store {shown(store)} {self.detail}", hint=None if detail else "try again, or raise busy_timeout_ms")


class StoreFull(AegisStoreError):
    """The disk or a quota is full. What was asked for was not done, what was stored stays.

    `store` names what could not be written: the store, or an export or archive of it.
    """

    def __init__(self, *, store: str, detail: str) -> None:
        self.store = store
        self.detail = detail
        super().__init__(f"no room to write to {shown(store)} ({detail})", hint="free some space, then try again")


class StoreUnavailable(AegisStoreError):
    """The store cannot be reached, read or written. Nothing is known to be wrong with its content."""

    def __init__(self, *, store: str, detail: str) -> None:
        self.store = store
        self.detail = detail
        super().__init__(f"cannot use store {shown(store)}: {detail}")


class StoreClosed(AegisStoreError):
    """The store object was closed, or belongs to the process that this one was forked from. Nothing was done."""

    def __init__(self, *, store: str, detail: str = "was closed") -> None:
        self.store = store
        self.detail = detail
        super().__init__(f"store {shown(store)} {detail}", hint="open it again with EventStore.open")


class ReadOnlyStore(AegisStoreError):
    """A write to a store that was opened read-only, or that this process may not write."""

    def __init__(self, *, store: str, hint: str | None = None) -> None:
        self.store = store
        super().__init__(
            f"store {shown(store)} is read-only here",
            hint=hint or "open it without read_only, as a user who may write it, its -wal and -shm files and its directory",
        )


class FileUnavailable(AegisStoreError):
    """A file beside the store, an export or an archive, or its directory, cannot be written. Nothing is left of the file."""

    def __init__(self, *, file: str, detail: str) -> None:
        self.file = file
        self.detail = detail
        super().__init__(f"cannot write {shown_path(file)}: {detail}")


class NotAnAegisStore(AegisStoreError):
    """The file is something else. It was left as it is."""

    def __init__(self, *, store: str, detail: str) -> None:
        self.store = store
        self.detail = detail
        super().__init__(f"{shown(store)} is not an Aegis store but {detail}: it was left as it is; check the path")


class StoreCorrupt(AegisStoreError):
    """The store is damaged. It was left as it is."""

    OF_A_FILE = "keep a copy of it with its -wal file, then restore a backup"
    ON_A_SERVER = "restore a backup of the server"

    def __init__(self, *, store: str, detail: str, hint: str = OF_A_FILE) -> None:
        self.store = store
        self.detail = detail
        super().__init__(f"store {shown(store)} is damaged ({detail}): it was left as it is; {hint}")
        self.hint = hint


class SchemaMismatch(AegisStoreError):
    """The store's schema is older or newer than this library's. It was left as it is. `hint` is the command that mends it."""

    def __init__(self, *, store: str, found: str, expected: str) -> None:
        self.store = store
        self.found = found
        self.expected = expected
        # Revisions are numbered, so that their names sort as they follow each other; "base" is no schema at all.
        if found == "base" or found < expected:
            hint = "run `aegis-store upgrade` (or `alembic upgrade head`) with the new version, once, as a deploy"
        else:
            hint = (
                "run `pip install --upgrade aegis-store` where this process runs, and start it again; "
                "a newer version has upgraded the store"
            )
        super().__init__(
            f"store {shown(store)} has schema {shown(found)}, this library works with {shown(expected)}", hint=hint
        )


class ImportRejected(AegisStoreError):
    """A file to import is malformed or of an unknown format. Nothing of it was imported. `place` says where.

    `others`: how many files were to come in together with it, and did not.
    """

    def __init__(self, *, file: str, place: str, detail: str, others: int = 0) -> None:
        self.file = file
        self.place = place
        self.detail = detail
        self.others = others
        together = f", nor of the {others:,} given with it" if others else ""
        super().__init__(f"{shown_path(file)} was not imported: {detail} ({place}); nothing of it was taken{together}")
