"""Where bytes of others come in: a function of bytes for each place, which raises if a promise does not hold.

The promise is the same everywhere: it works, and what was written is read back, or it is one of our errors, with a message that
can be printed anywhere. `test_corpus` runs these on the files of `corpus`, `fuzz` on what it makes of them. What they `tell` is
the same for a store in a file and on PostgreSQL.
"""

import gc
import io
import json
import math
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import typer
from typer.main import get_command

from aegis_store import AegisStoreError, EventStore, NewEvent, recording
from aegis_store import payload as payloads
from aegis_store.any_database import place_at
from aegis_store.events import Json
from aegis_store.retention.stored import policy_from_fields, policy_to_fields
from aegis_store.spool import Kept, Received, Spool, recorded_or_kept
from aegis_store.target import Target
from aegis_store.transfer.line_order import check
from tests.hostile.world import open_quietly, world

SECRET: Final = "hunter2-of-the-payload"


def is_clean(text: str) -> bool:
    """Nothing in it that a terminal or a log would take for anything but letters."""
    return all(character.isprintable() for character in text)


@contextmanager
def refusal() -> Iterator[None]:
    """Inside, an error of ours is fine, if it says something and can be printed; any other ends the run."""
    try:
        yield
    except AegisStoreError as error:
        said = str(error)
        tell(type(error).__name__)
    else:
        tell("done")
        return
    assert said.strip(), "an error without a message"
    assert is_clean(said), f"an error that is not printable: {said!r}"
    assert len(said) < 3000, f"an error of {len(said)} characters"
    assert SECRET not in said, "an error that quotes a payload"


def tell(*facts: object) -> None:
    """What must be the same wherever the store is."""
    world().told.append(facts)


def same(a: Json, b: Json) -> bool:
    """Equal type for type: True is not 1, 1 is not 1.0, -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b and math.copysign(1.0, a) == math.copysign(1.0, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(item, b[key]) for key, item in a.items())
    return bool(a == b)


def text_of(data: bytes) -> str:
    """Any text, lone surrogates too."""
    return data.decode("utf-8", "surrogateescape")


# Values of a program


def payload(data: bytes) -> None:
    """A payload, and the text of one as a shell could have written it."""
    try:
        value = payloads.decode(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        return
    with refusal():
        event = world().shared.append("s", "t", value)
        [found] = world().shared.read("s", after_seq=event.seq - 1, limit=1).events
        assert same(found.payload, value)
        tell(event.seq)


def names(data: bytes) -> None:
    """Ids, types, tenants, metadata: parts of the input, which are separated by bytes of 0."""
    parts = [text_of(part) for part in data.split(b"\0")]
    words = [*parts, text_of(data)]  # with what separates them, too
    given = dict(
        zip(("session_id", "tenant", "owner", "type", "event_id", "run_id", "payload_ref", "key"), parts, strict=False)
    )
    name = given.get("session_id", "")
    store = world().shared
    with refusal():
        store.ensure_session(
            name, tenant=given.get("tenant", "t"), owner=given.get("owner", "o"), metadata={given.get("key", "k"): parts}
        )
        found = store.get_session(name)
        assert (found.session_id, found.metadata) == (name, {given.get("key", "k"): parts})
    with refusal():
        scope = store.scoped(tenant=given.get("tenant", "t"), owner=given.get("owner", "o"))
        event = scope.append(
            name,
            given.get("type", "t"),
            parts,
            event_id=given.get("event_id"),
            run_id=given.get("run_id"),
            payload_ref=given.get("payload_ref"),
        )
        assert scope.read(name, after_seq=event.seq - 1).events[0] == event
        assert name in [session.session_id for session in scope.list_sessions(limit=1000).sessions]
        tell(event.seq)
    exported = world().directory / "named.jsonl"
    exported.unlink(missing_ok=True)
    for ask in (
        lambda: [event.type for event in store.read("s", types=words).events],
        lambda: [event.type for event in store.follow("s", after=0, types=words, timeout=0)],
        lambda: [session.session_id for session in store.list_sessions(statuses=words, limit=1000).sessions],
        lambda: [session.session_id for session in store.scoped(tenant=name, owner=words[-2]).list_sessions().sessions],
        lambda: store.export(exported, session_ids=words).sessions,
    ):
        with refusal():
            tell(ask())
    if name != "s":  # which the others want
        with refusal():
            store.delete_session(name)
    with refusal():
        store.get_session(name)


def cursors(data: bytes) -> None:
    """What a reader gives back: texts, and numbers of any size."""
    store = world().shared
    text = text_of(data)
    with refusal():
        tell([session.session_id for session in store.list_sessions(cursor=text, limit=1).sessions])
    with suppress(ValueError):
        number = payloads.decode(text)
        for read in (
            lambda: store.read("s", after_seq=number, limit=1),
            lambda: store.read_all(after_position=number, limit=1),
            lambda: store.read("s", limit=number),
            lambda: store.list_sessions(limit=number),
            lambda: next(store.follow("s", after=number, timeout=0), None),
            lambda: next(store.follow(after=number, timeout=0), None),
            lambda: store.append("s", "t", 1, expected_seq=number),
            lambda: store.session_overview("s", last=number),
        ):
            with refusal():
                read()
        with refusal():
            tell([event.seq for event in store.read("s", after_seq=number, limit=1000, on_gap="skip").events])


def places(data: bytes) -> None:
    """A path or a URL of a store, which is not opened."""
    text = text_of(data)
    with refusal():
        place = place_at(text)
        if isinstance(place, Target):
            os.fsencode(place.path)
        else:
            assert is_clean(str(place).replace("\\", ""))
            for secret in place.secrets:
                # One that stands elsewhere in the URL as well is shown there.
                assert len(secret) < 8 or text.count(secret) != 1 or secret not in f"{place} {place.identity} {place.name}"


def settings(data: bytes) -> None:
    """The words of the command line: sizes, durations, caps, times, hooks; and a policy in the header of a file."""
    from aegis_store.cli import append, policy

    text = text_of(data)
    for parse in (policy.parse_cap, policy.parse_size_or_none, policy.parse_duration_or_none):
        with suppress(typer.BadParameter):
            parse(text)
    with refusal():
        append._moment(text, "TIME")
    with suppress(ValueError):
        value = payloads.decode(text)
        if isinstance(value, dict):
            with refusal():
                found = policy_from_fields(value, "file")
                assert found is not None
                world().shared.set_retention_policy(found)
                stored = world().shared.retention_policy()
                assert policy_to_fields(stored) == policy_to_fields(found)
                tell(stored)


def redaction(data: bytes) -> None:
    """A hook that takes a secret out, and one that fails and quotes it: neither is stored nor told."""
    try:
        value = payloads.decode(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        return
    secret: dict[str, Json] = {"secret": SECRET, "value": value}
    received = received_hook(json.dumps({"session_id": "s", "hook_event_name": "t", **secret}).encode())
    for hook in (_without_secret, _failing):
        with refusal():
            kept = recording.without_secrets(received, hook)
            assert SECRET.encode() not in kept.content
            assert SECRET not in repr(kept)
            assert hook is _without_secret
        with refusal():
            store = world().redacting(hook)
            [event] = store.append_many("s", [NewEvent(type="t", payload=secret)])
            assert same(event.payload, {"secret": None, "value": value})
            assert same(store.read("s", after_seq=event.seq - 1).events[0].payload, event.payload)
            tell(event.seq)


def _without_secret(session_id: str, type: str, payload: Json) -> Json:
    return {**payload, "secret": None} if isinstance(payload, dict) else payload


def _failing(session_id: str, type: str, payload: Json) -> Json:
    raise ValueError(f"cannot redact {payload!r}")


# What comes in through files


def lines(data: bytes) -> None:
    """A file of JSON lines, plain or compressed: an export, or an archive."""
    file = world().file("given.jsonl", data)
    with refusal():
        policy_from_fields(check(file).get("policy"), file)
        with open_quietly(world().fresh("into.db")) as store:
            before = store.stats().events
            report = store.import_lines(file)
            assert store.stats().events == before + report.events_added - report.events_capped
            assert all(is_clean(refused.reason) for refused in report.refused)
            tell(report)
            again = store.import_lines(file)
            assert again.events_added == again.sessions_added == 0, "an import again adds something"
            _is_whole(store)


def state_file(data: bytes) -> None:
    """A state file of the orchestrator, plain or gzip."""
    file = world().file("given.json", data)
    rest = world().directory / "rest.json"
    rest.unlink(missing_ok=True)
    with refusal():
        with open_quietly(world().fresh("into.db")) as store:
            report = store.import_aegis(file, rest=rest)
            json.loads(rest.read_bytes())
            assert all(is_clean(refused.reason) for refused in report.refused)
            tell(report)
            again = store.import_aegis(file)
            assert again.events_added == again.sessions_added == 0, "an import again adds something"
            _is_whole(store)


def _is_whole(store: EventStore) -> None:
    """All of it can be looked at, exported and verified."""
    for session in store.list_sessions(limit=1000).sessions:
        store.session_overview(session.session_id)
        tell(session)
        with refusal():
            tell(store.read(session.session_id, limit=1000))
        if session.first_seq > 1:
            with refusal():
                store.read(session.session_id, after_seq=0)
    overview = store.overview()
    tell(overview.newest.types, overview.newest.sessions)
    exported = world().directory / "exported.jsonl"
    exported.unlink(missing_ok=True)
    store.export(exported)
    check(exported)
    tell(*exported.read_bytes().splitlines()[1:])
    assert not store.verify().problems


def store_file(data: bytes) -> None:
    """A file of a store in which bytes were changed: three for the place, the rest is what stands there now."""
    path = world().copy("damaged.db")
    with path.open("r+b") as file:
        for patch in data.split(b"\xff\xff"):
            if len(patch) > 3:
                file.seek(int.from_bytes(patch[:3], "little") % path.stat().st_size)
                file.write(patch[3:])
    _look_at(path)


def schema(data: bytes) -> None:
    """SQL that somebody ran in a store, who may do so: what is left is a store, or damage, or no store."""
    path = world().copy("changed.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as shell, suppress(sqlite3.Error, sqlite3.Warning):
        steps = iter(range(2000))
        shell.set_progress_handler(lambda: next(steps, None) is None, 1000)
        shell.execute("PRAGMA max_page_count = 1000")
        shell.execute("PRAGMA temp_store = MEMORY")
        for statement in data.decode("utf-8", "replace").split(";"):
            if "attach" not in statement.lower() and "vacuum" not in statement.lower() and "pragma" not in statement.lower():
                shell.execute(statement)
    _look_at(path)


def _look_at(path: Path) -> None:
    with refusal():
        EventStore.doctor(path)
    with refusal():
        with open_quietly(str(path)) as store:
            for look in (
                lambda: store.list_sessions(),
                lambda: store.read("s"),
                lambda: store.read_all(),
                lambda: store.overview(),
                lambda: store.session_overview("s"),
                lambda: store.health(),
                lambda: store.retention_policy(),
                lambda: store.plan_prune(),
                lambda: store.append("s", "t", 1),
                lambda: store.scoped(tenant="a'b", owner="%s").read_all(),
            ):
                with refusal():
                    look()
            with refusal():
                assert all(is_clean(problem.detail) for problem in store.verify().problems)
    restored = world().directory / "restored.db"
    restored.unlink(missing_ok=True)
    with refusal():
        EventStore.restore(path, restored)


# Hooks


def received_hook(content: bytes) -> Received:
    return Received(
        content=content,
        event_id="e",
        received_at=datetime.now(UTC),
        session_field="session_id",
        type_field="hook_event_name",
        tenant="default",
        owner="default",
    )


def hook(data: bytes) -> None:
    """What a hook sends: stored as it is, or kept in the spool byte for byte."""
    received = received_hook(data)
    assert Received.from_text(received.to_text()) == received
    place = world().place_of_all()
    for kept in Spool(place_at(place)).places:
        shutil.rmtree(kept, ignore_errors=True)
    outcome = recorded_or_kept(place, received, lambda given: recording.record(place_at(place), given, busy_timeout_ms=1000))
    if isinstance(outcome, Kept):
        assert outcome.rejected
        assert outcome.file is not None, outcome.problem
        assert Received.from_text(outcome.file.read_text()).content == data
        assert is_clean(outcome.reason)
        tell(outcome.reason)
    else:
        assert same(outcome.payload, json.loads(data.decode("utf-8-sig")))
        tell(outcome.session_id, outcome.seq, outcome.type)
        if outcome.session_id != "s":
            world().shared.delete_session(outcome.session_id)


def spool_file(data: bytes) -> None:
    """A file that lies in the spool: brought in, set aside or left, and in nobody's way."""
    place = world().fresh("spooled.db")
    spool = Spool(place_at(place))
    for directory in spool.places:
        shutil.rmtree(directory, ignore_errors=True)
    spool.places[0].mkdir(mode=0o700, parents=True)
    (spool.places[0] / "00000000000000000001-x.json").write_bytes(data)
    good = spool.add(received_hook(b'{"session_id": "after", "hook_event_name": "t"}'))
    said_by("spool", "show", "--db", place)
    report = recording.flush(place_at(place), busy_timeout_ms=1000)
    assert not good.exists()
    assert not report.stuck
    assert report.recorded + len(report.rejected) == 2
    tell(report.recorded)
    said_by("spool", "show", "--json", "--db", place)
    with open_quietly(place) as store:
        tell(*((each.session_id, each.status, each.last_seq) for each in store.list_sessions().sessions))


# The command line

_ENDLESS: Final = {"--follow", "-f", "--watch", "demo", "bench", "--install-completion", "--show-completion", "upgrade"}
_CODES: Final = {0, 1, 2, 3, 4, 5, 6, 7}


def arguments(data: bytes) -> None:
    """A command line, its words separated by bytes of 0, the input after two of them."""
    words, _, stdin = data.partition(b"\0\0")
    given = [text_of(word) for word in words.split(b"\0")]
    if any(word.split("=")[0] in _ENDLESS or word.startswith("-f") or _leads_out(word) for word in given):
        return
    if not (world().directory / "sandbox").exists():
        (world().directory / "sandbox").mkdir()
    said_by(*given, stdin=stdin)
    if len(os.listdir(world().directory / "sandbox")) > 20:
        shutil.rmtree(world().directory / "sandbox")


def _leads_out(word: str) -> bool:
    return ".." in word or word.startswith("/") or "=/" in word or "//" in word or "os:" in word or "sys:" in word


def appended_lines(data: bytes) -> None:
    """Lines for `append --jsonl`."""
    place = world().fresh("appended.db")
    tell(said_by("append", "s", "t", "--jsonl", "--json", "--db", place, stdin=data)[0])
    with open_quietly(place) as store:
        events = store.read("s", after_seq=20, limit=1000).events
        tell(*((each.seq, each.type, json.dumps(each.payload), each.event_id, each.run_id) for each in events))


@cache
def _command(app: typer.Typer) -> Any:
    """Made once: it takes ten times as long as most commands run."""
    return get_command(app)


def said_by(*words: str, stdin: bytes = b"", columns: str = "80") -> tuple[int, str, str]:
    """Run a command in this very process, in a directory of its own; what it said, which must be clean."""
    from aegis_store.cli import exits

    directory = world().directory / "sandbox"
    if not (directory / "aegis.db").exists():
        directory.mkdir(exist_ok=True)
        shutil.copyfile(world().copy("sandbox.db"), directory / "aegis.db")
    back, argv, given, environment = Path.cwd(), sys.argv, sys.stdin, dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    outputs = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(output, "utf-8", "backslashreplace", write_through=True) for output in outputs)
    try:
        os.chdir(directory)
        os.environ |= {"COLUMNS": columns, "HOME": str(directory), "AEGIS_STORE_URL": world().place_of_commands()}
        sys.argv, sys.stdin = ["aegis-store", *words], io.TextIOWrapper(io.BytesIO(stdin))
        with redirect_stdout(out), redirect_stderr(err), patch("typer.main.get_command", _command):
            code = exits._outcome()
    finally:
        os.chdir(back)
        sys.argv, sys.stdin = argv, given
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.unfreeze()
        gc.enable()
    said = [output.getvalue().decode() for output in outputs]
    assert code in _CODES, f"an exit code that is not documented: {code}"
    assert is_clean("".join(said).replace("\n", "")), f"output that is not printable: {said!r}"
    assert "internal error" not in said[1], said[1]
    assert "Traceback" not in said[1], said[1]
    assert (code in (0, 4, 7)) or said[1].strip() or "doctor" in words or "verify" in words, f"a failure without a word: {code}"
    return code, said[0], said[1]


ENTRIES: Final[dict[str, Callable[[bytes], None]]] = {
    entry.__name__: entry
    for entry in (
        *(payload, names, cursors, places, settings, redaction),
        *(lines, state_file, store_file, schema),
        *(hook, spool_file, arguments, appended_lines),
    )
}

AT_A_STORE: Final = (
    "payload",
    "names",
    "cursors",
    "settings",
    "redaction",
    "lines",
    "state_file",
    "hook",
    "spool_file",
    "arguments",
    "appended_lines",
)
"""Those that ask the store that the world has, and no file of SQLite."""
