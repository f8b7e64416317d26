"""Recording what the hooks of coding agents send: a session, an event and a status, in one transaction.

A hook event is a JSON object that names its session and its type. It is stored as it was sent; the session is created when it
is new, and events that begin or end it set its status. What waits in the spool comes first, see `spool`.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, select

from aegis_store import append, creation, gate, sessions
from aegis_store import payload as payloads
from aegis_store.any_database import AnyDatabase, Place
from aegis_store.database import Database
from aegis_store.errors import AegisStoreError, FileUnavailable, InvalidEvent, StoreBusy, shown
from aegis_store.events import Event, Json, Status, to_us
from aegis_store.json_problem import said_of
from aegis_store.redaction import Redact, redacted
from aegis_store.schema import event
from aegis_store.server import Server
from aegis_store.settings import GROUP_BYTES, GROUP_STATEMENTS, RECORD_FLUSH_S
from aegis_store.spool import REFUSED, Received, Spool, read

if TYPE_CHECKING:
    from aegis_store.postgres.database import PostgresDatabase

STATUS_AFTER: Final = {
    "sessionstart": Status.RUNNING,  # a new one, and one that had ended and is resumed
    "userpromptsubmit": Status.RUNNING,
    "sessionend": Status.COMPLETED,
}
"""The status of a session after an event of that type, which agents write as SessionStart, sessionStart, session_start …"""

_LOCK_POLL_S: Final = 0.005

# So far back it is looked whether an event that waited comes too late to set the status.
_OVERTAKING_EVENTS: Final = 100

OnFlushed = Callable[[int, int], None]
"""Called with (events brought in or set aside, events that wait in all)."""


class _Hook(NamedTuple):
    """A hook event that was read and checked."""

    session: dict[str, Any]
    event: append.Prepared
    status: Status | None


@dataclass(slots=True, kw_only=True)
class FlushReport:
    """What a flush did: how many events came in, which files were set aside, how many events wait still.

    `stuck` are files that cannot be read or removed, with the reason: they wait on, and hold up no others.
    """

    recorded: int = 0
    rejected: list[Path] = field(default_factory=list)
    waiting: int = 0
    stuck: dict[Path, str] = field(default_factory=dict)


def record(
    target: Place, received: Received, *, busy_timeout_ms: int, only_in_order: bool = False, redact: Redact | None = None
) -> Event:
    """Record a hook event, durably, in a store that is created if there is none. Recorded before: the event as it stands.

    First what waits in the spool is brought in, for up to a second. `only_in_order`: if something waits still, this event must
    not come before it, and `StoreBusy` is raised. Nothing is pruned.

    Raises one of `REFUSED` for an event that this store will never take, `RedactionFailed`, and what opening and writing a
    store raise.
    """
    hook = _read(received, redact)
    with _opened(target, busy_timeout_ms, redact) as db:
        spool, report = Spool(target), FlushReport()
        if spool.waiting():
            _bring_in(db, spool, report, until_s=time.monotonic() + RECORD_FLUSH_S)
            if only_in_order and not report.stuck.keys() >= set(spool.waiting()):
                raise StoreBusy(store=str(target), waited_ms=0, detail="has earlier events in its spool, which come in first")
        with db.write() as conn:
            return _take(conn, hook)


def flush(
    target: Place, *, busy_timeout_ms: int, on_progress: OnFlushed | None = None, redact: Redact | None = None
) -> FlushReport:
    """Bring in all that waits in the spool, in order, each event once.

    Some at a time in a transaction; their files go after it is committed, so that a flush may be interrupted at any point, and
    run again. (An event whose flush was killed between the two, and that was pruned before the next, would come in again.)
    Events that this store will never take are set aside; a file that cannot be read or removed waits on, see
    `FlushReport.stuck`. Two flushes at once take turns. Where nothing waits, the store is not opened. Raises what opening and
    writing a store raise, and `FileUnavailable` when the spool cannot be read or changed, and `RedactionFailed`: what waits is
    then left as it is.
    """
    spool, report = Spool(target), FlushReport()
    if theirs := spool.of_another_user():
        raise FileUnavailable(
            file=str(theirs), detail="it is not this user's alone, or a link: run this as the user whose events wait there"
        )
    if spool.waiting():
        with _opened(target, busy_timeout_ms, redact) as db:
            _bring_in(db, spool, report, on_progress=on_progress)
    report.waiting = len(spool.waiting())
    return report


@contextmanager
def _opened(target: Place, busy_timeout_ms: int, redact: Redact | None) -> Iterator[AnyDatabase]:
    if isinstance(target, Server):
        target.check_driver()
        from aegis_store.postgres.opening import open_database  # noqa: PLC0415 - psycopg is not everybody's

        db: Database | PostgresDatabase = open_database(target, busy_timeout_ms=busy_timeout_ms, redact=redact)
    else:
        creation.ensure(target)
        gate.check(target)
        db = Database(target, busy_timeout_ms=busy_timeout_ms, redact=redact)
    try:
        yield db
    finally:
        db.close()


# From what was sent to an event


def names_of(received: Received) -> tuple[str, str]:
    """The session and the type that it names. Raises `InvalidEvent`."""
    payload = _payload_of(received)
    return _text_at(payload, received.session_field), _text_at(payload, received.type_field)


def without_secrets(received: Received, redact: Redact) -> Received:
    """The same with what the hook gives as its content: what may be kept. Raises `InvalidEvent`, `RedactionFailed`."""
    payload = redacted(redact, *names_of(received), _payload_of(received))
    return replace(received, content=payloads.encode(payload)[1])


def _read(received: Received, redact: Redact | None) -> _Hook:
    payload = _payload_of(received)
    session_id, type_ = _text_at(payload, received.session_field), _text_at(payload, received.type_field)
    session = sessions.new_record(
        session_id, tenant=received.tenant, owner=received.owner, status="running", metadata=None, max_events=None
    )
    prepared = append.prepare(
        session_id, type_, payload, received.event_id, None, received.received_at, None, None, redact=redact
    )
    return _Hook(session, prepared, status_after(type_))


def status_after(type_: str) -> Status | None:
    """The status of a session after an event of that type; None if it stays."""
    return STATUS_AFTER.get(type_.replace("_", "").replace(".", "").lower())


def _payload_of(received: Received) -> dict[str, Json]:
    try:
        payload = _decode(received.content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _refused("is no UTF-8") from None
    except RecursionError:
        raise _refused("is nested too deeply") from None
    except ValueError as error:
        raise _refused("is empty" if not received.content.strip() else f"is no JSON ({said_of(error)})") from None
    if not isinstance(payload, dict):
        raise _refused(f"must be a JSON object, not {type(payload).__name__}")
    return payload


def _text_at(payload: dict[str, Json], name: str) -> str:
    """What stands at a name, or at a path such as `params.sessionId`."""
    found: Json = payload
    for step in [name] if name in payload else name.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    if found is None:
        raise _refused(f"has no {shown(name)}: see --session-field and --type-field")
    if not isinstance(found, str):
        raise _refused(f"has no text as {shown(name)}, but {type(found).__name__}")
    return found


def _refused(problem: str) -> InvalidEvent:
    return InvalidEvent.at("the hook event", problem)


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {shown(name)} stands twice in an object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant).decode


# Into the store


def _take(conn: Connection, hook: _Hook) -> Event:
    """Inside your transaction. An error leaves it to you to undo what was done."""
    sessions.standing_or_new(conn, hook.session)
    taken = append.insert_one(conn, hook.event)
    if hook.status is not None and not _is_overtaken(conn, hook):
        sessions.set_status(conn, hook.event.session_id, hook.status)
    return taken


def _is_overtaken(conn: Connection, hook: _Hook) -> bool:
    """Whether a later event that sets a status, too, was recorded before this one, which waited in the spool.

    Later than now is none: since it was recorded, the clock was set back.
    """
    row = sessions.row_of(conn, hook.event.session_id)
    newest = select(event.c.type, event.c.occurred_at).where(
        event.c.session == row.id, event.c.seq > row.last_seq - _OVERTAKING_EVENTS
    )
    occurred_us, now_us = hook.event.parameters["occurred_at"], to_us(datetime.now(UTC))
    return any(occurred_us < later.occurred_at <= now_us and status_after(later.type) for later in conn.execute(newest))


def _bring_in(
    db: AnyDatabase, spool: Spool, report: FlushReport, *, until_s: float | None = None, on_progress: OnFlushed | None = None
) -> None:
    """Bring in what waits; with `until_s`, as much as can be begun by that time of `time.monotonic()`."""
    lock = spool.lock()
    try:
        while until_s is not None and not lock.try_acquire():
            if time.monotonic() >= until_s:
                return
            time.sleep(_LOCK_POLL_S)
        if until_s is None:
            lock.acquire()
        with _spool_errors(spool):
            spool.sweep()
            _bring_in_all(db, spool, report, until_s, on_progress)
    finally:
        lock.close()


def _bring_in_all(
    db: AnyDatabase, spool: Spool, report: FlushReport, until_s: float | None, on_progress: OnFlushed | None
) -> None:
    done = 0
    while files := [file for file in spool.waiting() if file not in report.stuck]:  # again, for those that came meanwhile
        rest = files
        while rest:
            group, rest = _next_group(rest)
            _bring_in_group(db, spool, group, report)
            if on_progress:
                on_progress(done + len(files) - len(rest), done + len(files))
            if until_s is not None and time.monotonic() >= until_s:
                return
        done += len(files)


def _next_group(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """As many as go into one transaction, at least one, and the rest."""
    size_bytes = count = 0
    for file in files[:GROUP_STATEMENTS]:
        try:
            size_bytes += file.stat().st_size
        except FileNotFoundError:  # somebody took it away
            size_bytes += 0
        if count and size_bytes > GROUP_BYTES:
            break
        count += 1
    return files[:count], files[count:]


def _bring_in_group(db: AnyDatabase, spool: Spool, files: list[Path], report: FlushReport) -> None:
    refused: dict[Path, str] = {}
    hooks: dict[Path, _Hook] = {}
    for file in files:
        try:
            hooks[file] = _read(read(file), db.redact)
        except FileNotFoundError:  # somebody took it away
            continue
        except OSError as error:  # damaged, or another user's
            report.stuck[file] = error.strerror or str(error)
        except (ValueError, *REFUSED) as error:
            refused[file] = str(error)
    with db.writes() as write:
        for part in db.parts(list(hooks.items()), lambda item: item[1].event.session_id):
            with write() as conn:
                refused |= _take_all(conn, part)
    recorded = [file for file in hooks if file not in refused]
    for file, problem in spool.remove(recorded).items():
        report.stuck[file] = f"it is recorded, but cannot be removed: {problem.strerror}"
    report.recorded += len(recorded)
    for file, reason in refused.items():
        try:
            report.rejected.append(spool.reject(file, reason))
        except OSError as error:
            report.stuck[file] = f"it cannot be set aside: {error.strerror}; {reason}"


def _take_all(conn: Connection, hooks: Sequence[tuple[Path, _Hook]]) -> dict[Path, str]:
    """Record each by itself; those that this store will never take, and why."""
    refused: dict[Path, str] = {}
    for file, hook in hooks:
        try:
            with conn.begin_nested():
                _take(conn, hook)
        except REFUSED as error:
            refused[file] = str(error)
    return refused


@contextmanager
def _spool_errors(spool: Spool) -> Iterator[None]:
    try:
        yield
    except AegisStoreError:
        raise
    except OSError as error:
        where = error.filename or spool.places[0]
        raise FileUnavailable(file=str(where), detail=f"{error.strerror}: check the disk and the permissions") from None
