"""The command `append`: events from an argument, a file or a pipe."""

import codecs
import io
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from aegis_store.cli.options import AsJson, Db, RedactBy, open_to_change, redact_hook

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis_store.events import Event, Json, NewEvent

_TAKEN = {"type", "payload", "event_id", "occurred_at", "run_id", "payload_ref"}
_GIVEN_BY_THE_STORE = {"session_id", "seq", "position", "recorded_at"}


def append(
    context: typer.Context,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="The session, by its id.")],
    type_: Annotated[
        str | None,
        typer.Argument(
            metavar="TYPE", help="The type of the event. With --jsonl that of lines without one.", show_default=False
        ),
    ] = None,
    payload: Annotated[
        str | None,
        typer.Argument(
            metavar="PAYLOAD", help="The payload as JSON. Without it, and without --file: stdin.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read from this file.", exists=True, dir_okay=False, show_default=False),
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Read an event a line, as `events --json` prints them.")] = False,
    create: Annotated[
        bool, typer.Option("--create", help="Create the session, and the store and its directories, if there is none.")
    ] = False,
    event_id: Annotated[
        str | None,
        typer.Option(metavar="EVENT_ID", help="The event's own id, which makes it harmless to repeat.", show_default=False),
    ] = None,
    expected_seq: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEQ", help="Append only if this is the session's last seq.", show_default=False),
    ] = None,
    run_id: Annotated[str | None, typer.Option(metavar="RUN_ID", help="The run it belongs to.", show_default=False)] = None,
    payload_ref: Annotated[
        str | None, typer.Option(metavar="REF", help="Where the bulk of the payload is kept.", show_default=False)
    ] = None,
    occurred_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it happened, such as 2026-11-25T12:00:00Z; now.", show_default=False),
    ] = None,
    redact: RedactBy = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Append an event to a session, or many.

    With --json, prints them as they are stored, one a line.

    With --jsonl each line is an object with `payload`, and with `type`, `event_id`, `occurred_at`, `run_id` and `payload_ref`
    as far as there are any. What the store gives (`session_id`, `seq`, `position`, `recorded_at`) is passed over, so that the
    output of `events --json` can be appended to another session. All lines come in as one batch, in order, or none does: then
    nothing was appended, and `events[2]` in the message is the third of them. They are read to the end first.

    Example: aegis-store append run-42 note '{"text": "checked"}' --create
    """
    given = {"event_id": event_id, "run_id": run_id, "payload_ref": payload_ref, "occurred_at": occurred_at}
    if jsonl:
        _check_alone_with_jsonl(payload, given)
        events = _events_of_lines(_content(None, file), type_)
    else:
        events = [_event(type_, payload, file, given)]
    with open_to_change(context, db, create=create, redact=redact_hook(redact)) as store:
        if create:
            store.ensure_session(session)
        if jsonl:
            appended = store.append_many(session, events, expected_seq=expected_seq)
        else:
            appended = [store.append(session, expected_seq=expected_seq, **asdict(events[0]))]
    _show(session, appended, as_json=as_json)


def _check_alone_with_jsonl(payload: str | None, given: dict[str, str | None]) -> None:
    for name, value in {"PAYLOAD": payload, **{f"--{name.replace('_', '-')}": value for name, value in given.items()}}.items():
        if value is not None:
            raise typer.BadParameter("with --jsonl it stands in the lines", param_hint=f"'{name}'")


def _event(type_: str | None, payload: str | None, file: Path | None, given: dict[str, str | None]) -> "NewEvent":
    from aegis_store.events import NewEvent

    if type_ is None:
        raise typer.BadParameter("an event needs a type; with --jsonl it stands in the lines", param_hint="'TYPE'")
    if payload is not None and file is not None:
        raise typer.BadParameter("give one of the two, PAYLOAD or --file", param_hint="'--file'")
    where = "PAYLOAD" if payload is not None else str(file) if file else "stdin"
    value = _decoded(_content(payload, file), where)
    moment = given.pop("occurred_at")
    return NewEvent(type=type_, payload=value, occurred_at=moment and _moment(moment, "--occurred-at"), **given)  # type: ignore[arg-type]


def _content(payload: str | None, file: Path | None) -> bytes:
    if payload is not None:
        return payload.encode(errors="surrogateescape")  # the bytes that were typed
    if file is not None:
        with file.open("rb") as opened:
            return _read(opened, str(file))
    return _read(sys.stdin.buffer, "stdin") if sys.stdin else b""


def _read(stream: BinaryIO, where: str) -> bytes:
    from aegis_store.errors import InvalidInput
    from aegis_store.settings import MAX_INPUT_BYTES

    content = stream.read(MAX_INPUT_BYTES + 1)
    if len(content) > MAX_INPUT_BYTES:
        raise InvalidInput(f"{where} is longer than {MAX_INPUT_BYTES:,} bytes, the most that is read at once: give it in parts")
    return content


def _decoded(content: bytes, where: str) -> "Json":
    from aegis_store import payload as payloads
    from aegis_store.errors import InvalidInput
    from aegis_store.json_problem import said_of

    try:
        return payloads.decode(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidInput(f"{where} is no UTF-8") from None
    except ValueError as error:
        problem = said_of(error) if content.strip() else "it is empty"
        raise InvalidInput(f"{where} is no JSON ({problem}){_advice(content, where)}") from None


def _advice(content: bytes, where: str) -> str:
    """What the shell has most likely to do with it."""
    if where != "PAYLOAD" or b'"' in content or not content.strip():
        return ""
    if content.lstrip()[:1] in (b"{", b"["):
        return '; the shell takes double quotes away: put single quotes around it all, \'{"name": "text"}\''
    return "; a text needs double quotes, and single ones for the shell, '\"text\"'"


def _moment(text: Any, where: str) -> datetime:
    from aegis_store.errors import InvalidInput, shown

    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InvalidInput(f"{where} must be a time such as 2026-11-25T12:00:00Z, not {shown(text)}") from None
    if moment.tzinfo is None:
        raise InvalidInput(f"{where} has no time zone: write {text}Z for UTC, or {text}+01:00")
    return moment


def _events_of_lines(content: bytes, type_: str | None) -> "list[NewEvent]":
    """Empty lines are passed over."""
    lines = enumerate(io.BytesIO(content.removeprefix(codecs.BOM_UTF8)), 1)
    return [_event_of_line(line.rstrip(b"\n"), f"line {number}", type_) for number, line in lines if line.strip()]


def _event_of_line(line: bytes, where: str, type_: str | None) -> "NewEvent":
    from aegis_store.errors import InvalidInput, shown
    from aegis_store.events import NewEvent

    fields = _decoded(line, where)
    if not isinstance(fields, dict):
        raise InvalidInput(f"{where} must be an object with `type` and `payload`, not {type(fields).__name__}")
    for name in fields:
        if name not in _TAKEN | _GIVEN_BY_THE_STORE:
            raise InvalidInput(f"{where} has {shown(name)}, which is no part of an event: it has {', '.join(sorted(_TAKEN))}")
    if "payload" not in fields:
        raise InvalidInput(f"{where} has no `payload`: write null if there is nothing to say")
    given = {name: value for name, value in fields.items() if name in _TAKEN and value is not None}
    if given.get("type", type_) is None:
        raise InvalidInput(f"{where} has no `type`: give it there, or as TYPE for all lines")
    if "occurred_at" in given:
        given["occurred_at"] = _moment(given["occurred_at"], f"`occurred_at` of {where}")
    return NewEvent(**{"type": type_, "payload": None, **given})


def _show(session: str, appended: "Iterable[Event]", *, as_json: bool) -> None:
    from aegis_store.cli.nouns import event_fields
    from aegis_store.cli.terminal import count, plural, show, show_json

    events = list(appended)
    if as_json:
        for event in events:
            show_json(event_fields(event))
    elif not events:
        show("No event was given.")
    else:
        first, last = events[0].seq, events[-1].seq
        seqs = f"seq {count(first)}" if len(events) == 1 else f"seq {count(first)} to {count(last)}"
        show(f"{plural(len(events), 'event')} in session {session}: {seqs}")
