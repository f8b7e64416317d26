"""The command `record`: what a coding agent calls at each of its hooks."""

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_store.cli.options import Db, RedactBy, place_of, redact_hook

if TYPE_CHECKING:
    from aegis_store.events import Event
    from aegis_store.spool import Kept, Received

_LENIENT_BUSY_TIMEOUT_S = 1.0
_BUSY_TIMEOUT_S = 10.0
_LENIENT_CONNECT_TIMEOUT_S = "2"  # psycopg takes no less
_PIECE_BYTES = 64 * 1024


def record(
    context: typer.Context,
    session_field: Annotated[
        str, typer.Option("--session-field", metavar="NAME", help="Where the event names its session; a.b for b inside of a.")
    ] = "session_id",
    type_field: Annotated[
        str, typer.Option("--type-field", metavar="NAME", help="Where it names its type, likewise.")
    ] = "hook_event_name",
    tenant: Annotated[str, typer.Option(metavar="NAME", help="The tenant of a session that is new.")] = "default",
    owner: Annotated[str, typer.Option(metavar="NAME", help="The owner of a session that is new.")] = "default",
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Never fail: keep what cannot be recorded in the spool, and exit with 0.")
    ] = False,
    busy_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=3600,
            metavar="SECONDS",
            help="How long to wait for other writers: 10, or 1 with --lenient.",
            show_default=False,
        ),
    ] = None,
    redact: RedactBy = None,
    db: Db = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the event as it is stored; without it nothing.")] = False,
) -> None:
    """Record a hook event of an agent, from stdin.

    It is a JSON object, and is stored as it is. Its session is created if it is new, and so is the store, with the directories
    above it. SessionStart and UserPromptSubmit set the status running, SessionEnd completed. Nothing is pruned, and nothing
    printed.

    With --lenient an event that cannot be recorded now (the store is busy, damaged or of another schema, the disk full …) is
    kept beside the store, in NAME-spool, or where that cannot be written in the state directory of the user, as for a store on
    a server that is not reached. The next call brings in what waits, for up to a second, before its own event, so that the
    events of calls that follow each other stay in order; `aegis-store spool flush` brings in all. What the store will never
    take is set aside, and named on stderr. If stdin is still open after 5 s, what has come by then is taken for the event.

    With --redact, what is kept is redacted too. An event that cannot be redacted (it is no JSON, the hook fails or is not
    there) is not kept at all, since that would be in clear: with --lenient it is lost, and stderr says so.

    Example: aegis-store record --lenient --json < event.json
    """
    # The time goes into imports, for which there is no garbage to collect, neither now nor at the end.
    gc.disable()
    if lenient:
        _be_interrupted_by("SIGTERM", "SIGHUP")
        os.environ.setdefault("PGCONNECT_TIMEOUT", _LENIENT_CONNECT_TIMEOUT_S)  # psycopg's, unless the URL says otherwise
    try:
        _record(
            _received(_sent(lenient=lenient), session_field, type_field, tenant, owner),
            place_of(context, db),
            _busy_timeout_ms(busy_timeout, lenient=lenient),
            redact,
            lenient=lenient,
            as_json=as_json,
        )
    finally:
        gc.freeze()


def _be_interrupted_by(*names: str) -> None:
    """An agent that loses patience, or goes: the event is kept as with Ctrl-C."""
    for name in names:
        number = getattr(signal, name, None)  # Windows knows no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # under nohup it is not
            signal.signal(number, signal.default_int_handler)


def _busy_timeout_ms(busy_timeout_s: float | None, *, lenient: bool) -> int:
    default_s = _LENIENT_BUSY_TIMEOUT_S if lenient else _BUSY_TIMEOUT_S
    return int((default_s if busy_timeout_s is None else busy_timeout_s) * 1000)


def _sent(*, lenient: bool) -> bytes:
    """What stands in stdin."""
    from aegis_store.settings import MAX_INPUT_BYTES, RECORD_STDIN_S

    if not sys.stdin or sys.stdin.isatty():
        return b""  # a terminal has nothing to say, and no agent is to wait for it
    if not lenient:
        return sys.stdin.buffer.read(MAX_INPUT_BYTES)
    content, waited = _read_for(sys.stdin.fileno(), MAX_INPUT_BYTES, RECORD_STDIN_S)
    if waited:
        said = f"stdin is still open {waited}: what has come until now is taken for the event"
        print(f"aegis-store: {said}", file=sys.stderr)  # noqa: T201
    return content


def _read_for(descriptor: int, most_bytes: int, limit_s: float) -> tuple[bytes, str]:
    """What comes within that time, or until a signal; and if it has not ended by then, what ended the wait."""
    from threading import Thread

    found = bytearray()

    def read() -> None:
        while len(found) < most_bytes and (piece := os.read(descriptor, min(_PIECE_BYTES, most_bytes - len(found)))):
            found.extend(piece)

    # A thread, since Windows cannot wait for a pipe; one that is left behind, since nothing ends its reading.
    reader = Thread(target=read, daemon=True)
    try:
        reader.start()
        reader.join(limit_s)
    except KeyboardInterrupt:  # the agent has lost patience, and what it has sent may be whole
        return bytes(found), "and the call interrupted"  # without a look at the thread, which may seem to have ended now
    return bytes(found), f"after {limit_s:g} s" if reader.is_alive() else ""


def _received(content: bytes, session_field: str, type_field: str, tenant: str, owner: str) -> "Received":
    from datetime import UTC, datetime
    from secrets import token_hex

    from aegis_store.spool import Received

    return Received(
        content=content,
        event_id=token_hex(16),
        received_at=datetime.now(UTC),
        session_field=session_field,
        type_field=type_field,
        tenant=tenant,
        owner=owner,
    )


def _record(
    received: "Received", place: str, busy_timeout_ms: int, redact: str | None, *, lenient: bool, as_json: bool
) -> None:
    from aegis_store.cli.nouns import event_fields
    from aegis_store.cli.terminal import show_json
    from aegis_store.spool import Kept, recorded_or_kept

    def attempt(given: "Received") -> "Event":
        from aegis_store import recording
        from aegis_store.any_database import place_at

        hook = redact_hook(redact)
        return recording.record(place_at(place), given, busy_timeout_ms=busy_timeout_ms, only_in_order=lenient, redact=hook)

    def without_secrets(given: "Received") -> "Received":
        hook = redact_hook(redact)
        if hook is None:
            return given
        from aegis_store import recording

        return recording.without_secrets(given, hook)

    outcome = recorded_or_kept(place, received, attempt, without_secrets) if lenient else attempt(received)
    if isinstance(outcome, Kept):
        _tell(outcome, place)
    elif as_json:
        show_json(event_fields(outcome))


def _tell(kept: "Kept", place: str) -> None:
    from aegis_store.cli.terminal import printable

    if kept.file is None:
        said = f"an event is lost, it could not be kept either ({kept.problem}): {kept.reason}"
    elif kept.rejected:
        said = f"an event was set aside in {kept.file}: {kept.reason}"
    else:
        said = f"an event waits in {kept.file.parent}: {kept.reason}"
        if os.path.isdir(place):
            said += ". No call with this --db will bring it in: move what waits to NAME-spool beside the file NAME"
    print(f"aegis-store: {printable(said)}", file=sys.stderr)  # noqa: T201
