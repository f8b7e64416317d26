"""The commands `record` and `spool`, as agents and users run them."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis_store import EventStore, driver
from tests.cli.conftest import Run

COMMAND = (sys.executable, "-c", "from aegis_store.cli import main; main()")

TOOL = {
    "session_id": "abc123",
    "transcript_path": "/home/u/.claude/projects/p/abc123.jsonl",
    "cwd": "/home/u/p",
    "permission_mode": "default",
    "hook_event_name": "PreToolUse",
    "tool_name": "Bash",
    "tool_input": {"command": "ls", "timeout": 1.0},
    "tool_use_id": "toolu_01",
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of this test's user."""
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    return tmp_path / "state"


def hook(name: str = "PreToolUse", session_id: str = "abc123", **fields: Any) -> bytes:
    return json.dumps({**TOOL, "hook_event_name": name, "session_id": session_id, **fields}).encode()


def events(path: Path, session_id: str = "abc123") -> list[Any]:
    with EventStore.open(path, read_only=True) as store:
        return store.read(session_id, limit=1000).events


def types(path: Path, session_id: str = "abc123") -> list[str]:
    return [event.type for event in events(path, session_id)]


def status(path: Path, session_id: str = "abc123") -> str:
    with EventStore.open(path, read_only=True) as store:
        return store.get_session(session_id).status


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, another writer holds the store."""
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def silent(done: "subprocess.CompletedProcess[Any]") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def spooled(done: "subprocess.CompletedProcess[Any]", *words: str) -> None:
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (0, "", 1), done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def shown(run: Run, **environment: str) -> list[Any]:
    return [json.loads(line) for line in run("spool", "show", "--json", **environment).stdout.splitlines()]


# What is recorded


def test_a_hook_event_is_stored_as_it_was_sent_in_a_session_and_a_store_that_are_new(run: Run, tmp_path: Path) -> None:
    silent(run("record", stdin=json.dumps(TOOL).encode()))
    (event,) = events(tmp_path / "aegis.db")
    assert (event.session_id, event.type, event.payload) == ("abc123", "PreToolUse", TOOL)
    assert list(event.payload) == list(TOOL)


def test_what_is_stored_equals_what_was_sent_also_with_cut_emoji_and_byte_order_mark(run: Run, path: Path) -> None:
    sent = {"a": "\ud83d", "b": "\0\x1b[31m\u202e", "c": 10**300, "d": -0.0, "e": [[[1.0, True, None]]]}
    silent(run("record", stdin=b"\xef\xbb\xbf" + hook(tool_response=sent) + b"\r\n"))
    assert repr(events(path)[0].payload["tool_response"]) == repr(sent)


def test_pre_and_post_tool_use_of_one_tool_call_are_two_events(run: Run, path: Path) -> None:
    for name in ("PreToolUse", "PostToolUse", "PostToolUse"):
        silent(run("record", stdin=hook(name)))
    assert types(path) == ["PreToolUse", "PostToolUse", "PostToolUse"]


def test_with_json_the_event_is_printed(run: Run, path: Path) -> None:
    printed = json.loads(run("record", "--json", stdin=hook()).stdout)
    assert (printed["seq"], printed["payload"]) == (1, TOOL)
    assert printed == json.loads(run("events", "abc123", "--json").stdout)


def test_session_and_type_are_taken_from_other_fields_also_from_inside(run: Run, path: Path) -> None:
    sent = {"params": {"sessionId": "s", "update": {"sessionUpdate": "plan"}}, "a.b": "dotted"}
    fields = ("--session-field", "params.sessionId", "--type-field")
    silent(run("record", *fields, "params.update.sessionUpdate", stdin=json.dumps(sent).encode()))
    silent(run("record", *fields, "a.b", stdin=json.dumps(sent).encode()))
    assert types(path, "s") == ["plan", "dotted"]


def test_a_new_session_belongs_to_the_tenant_and_owner_that_are_given(run: Run, path: Path) -> None:
    silent(run("record", "--tenant", "acme", "--owner", "ci", stdin=hook()))
    with EventStore.open(path, read_only=True) as store:
        session = store.get_session("abc123")
    assert (session.tenant, session.owner) == ("acme", "ci")
    done = run("record", stdin=hook())
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "is taken" in done.stderr


@pytest.mark.parametrize("names", [("SessionStart", "UserPromptSubmit", "SessionEnd"), ("session_start", "x", "session.end")])
def test_the_status_follows_the_events_that_begin_and_end_a_session(run: Run, path: Path, names: tuple[str, str, str]) -> None:
    start, prompt, end = names
    found = []
    for name in ("PreToolUse", start, "Stop", end, "PostToolUse", start, end, prompt):
        silent(run("record", stdin=hook(name)))
        found.append(status(path))
    last = "running" if prompt == "UserPromptSubmit" else "completed"
    assert found == [*["running"] * 3, *["completed"] * 2, "running", "completed", last]


def test_recording_removes_no_event_of_sessions_that_have_ended(run: Run, path: Path) -> None:
    silent(run("record", stdin=hook("SessionEnd")))
    silent(run("record", stdin=hook(session_id="other")))
    assert types(path) == ["SessionEnd"]


# What cannot be recorded

MALFORMED = [
    (b"", "is empty"),
    (b"  \n", "is empty"),
    (b"\x00\xff\xfe", "is no UTF-8"),
    (b"not json", "is no JSON (column 1: a value is missing"),
    (b"[1, 2]", "must be a JSON object, not list"),
    (b'"text"', "must be a JSON object, not str"),
    (b'{"session_id": "abc123"}', "has no 'hook_event_name'"),
    (b'{"hook_event_name": "Stop"}', "has no 'session_id'"),
    (b'{"hook_event_name": "Stop", "session_id": 7}', "has no text as 'session_id', but int"),
    (b'{"hook_event_name": "Stop", "session_id": null}', "has no 'session_id'"),
    (hook(session_id="\ud83d"), "lone surrogate"),
    (hook(session_id="a\x1b[31m"), "control character"),
    (hook(name=""), "must be 1 to 512 bytes"),
    (hook(name="t" * 513), "must be 1 to 512 bytes"),
    (hook()[:-1] + b', "x": NaN}', "NaN is not JSON"),
    (hook()[:-1] + b', "x": 1e999}', "is inf"),
    (hook()[:-1] + b', "x": 1, "x": 2}', "'x' stands twice"),
    (hook()[:-1] + b', "x": ' + b"[" * 250 + b"]" * 250 + b"}", "200 levels"),
    (b'{"x":' * 50_000, "nested too deeply"),
    (hook(tool_response="x" * 1_100_000), "over the limit of 1,048,576"),
    (hook() + hook(), "is no JSON (column 267: the document has ended"),
]


@pytest.mark.parametrize(("sent", "problem"), MALFORMED, ids=[problem for _, problem in MALFORMED])
def test_what_the_store_will_never_take_is_told_or_set_aside_with_the_reason(
    run: Run, path: Path, sent: bytes, problem: str
) -> None:
    done = run("record", stdin=sent)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert problem in done.stderr
    spooled(run("record", "--lenient", stdin=sent), "set aside in", problem)
    (aside,) = shown(run)
    assert (aside["rejected"], problem in aside["reason"]) == (True, True)
    assert Path(aside["file"]).parent == path.with_name("aegis.db-spool") / "rejected"
    assert run("spool", "flush").stdout == "No event waits.\n"
    with EventStore.open(path, read_only=True) as store:
        assert store.stats().events == 0


def test_what_was_set_aside_holds_what_was_sent_byte_for_byte(run: Run, path: Path) -> None:
    from aegis_store.spool import read

    for sent in (b"\x00\xff\xfe", b"\xef\xbb\xbfno json\r\n\xf0\x9f\x98\x80", hook(tool_response="\ud83d" * 600_000)):
        spooled(run("record", "--lenient", stdin=sent), "set aside")
        assert read(Path(shown(run)[-1]["file"])).content == sent


def test_a_stdin_that_is_closed_is_told(path: Path) -> None:
    for lenient, code in (((), 2), (("--lenient",), 0)):
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "record", *lenient, "--db", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
        assert "is empty" in done.stderr


@pytest.mark.parametrize(
    ("sent", "word"), [(hook(), ""), (hook()[:-1], "at its end: a comma or the closing bracket is missing")]
)
def test_an_agent_that_leaves_stdin_open_does_not_wait_for_ever(run: Run, path: Path, sent: bytes, word: str) -> None:
    command = [*COMMAND, "record", "--lenient", "--db", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(sent)
        process.stdin.flush()
        assert process.wait(60) == 0
        said = process.stderr.read().decode()
    assert "stdin is still open after 5 s" in said
    assert word in said
    assert len(said.splitlines()) == (2 if word else 1)
    with EventStore.open(path, read_only=True) as store:
        assert store.stats().events == (0 if word else 1)


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
def test_a_terminal_is_not_waited_for(path: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    command = [*COMMAND, "record", "--db", str(path)]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, timeout=60, check=False)
    os.close(controller)
    os.close(terminal)
    assert (done.returncode, "is empty" in done.stderr) == (2, True)


def test_a_user_without_a_home_has_no_second_place(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    from aegis_store import spool
    from aegis_store.target import Target

    monkeypatch.setattr(spool, "user_state_path", lambda *_, **__: Path("~/.local/state"))
    assert spool.Spool(Target.of(path)).places == (path.with_name("aegis.db-spool"),)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions")
def test_a_spool_of_another_user_is_no_reason_to_fail_but_a_flush_says_so(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis_store import FileUnavailable, recording, spool
    from aegis_store.target import Target

    spool_some(run, path, hook())
    listed, allowed = os.scandir, os.access
    theirs = path.with_name("aegis.db-spool")

    def scandir(directory: Path) -> Any:
        if Path(directory) == theirs:
            raise PermissionError(13, "Permission denied", str(directory))
        return listed(directory)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file) != theirs and allowed(file, mode))
    assert spool.Spool(Target.of(path)).waiting() == []
    with pytest.raises(FileUnavailable, match="run this as the user whose events wait"):
        recording.flush(Target.of(path), busy_timeout_ms=1000)


def test_without_lenient_a_store_that_is_busy_is_told_and_nothing_spooled(run: Run, path: Path) -> None:
    with locked(path):
        done = run("record", "--busy-timeout", "0.1", stdin=hook())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (6, "", 1)
    assert not path.with_name("aegis.db-spool").exists()


# What waits


def test_an_event_that_finds_the_store_busy_waits_beside_it_and_comes_in_with_the_next_call_in_order(
    run: Run, path: Path
) -> None:
    silent(run("record", "--lenient", stdin=hook("SessionStart")))
    with locked(path):
        for name in ("PreToolUse", "PostToolUse"):
            spooled(run("record", "--lenient", "--busy-timeout", "0.1", stdin=hook(name)), "aegis.db-spool", "held by another")
    assert [(found["session"], found["type"], found["rejected"]) for found in shown(run)] == [
        ("abc123", "PreToolUse", False),
        ("abc123", "PostToolUse", False),
    ]
    silent(run("record", "--lenient", stdin=hook("Stop")))
    assert types(path) == ["SessionStart", "PreToolUse", "PostToolUse", "Stop"]
    assert shown(run) == []
    assert all(event.payload == {**TOOL, "hook_event_name": event.type} for event in events(path))


def test_an_event_that_waited_keeps_the_time_at_which_it_was_received(run: Run, path: Path) -> None:
    with locked(path):
        run("record", "--lenient", "--busy-timeout", "0", stdin=hook())
    (waiting,) = shown(run)
    run("spool", "flush")
    (event,) = events(path)
    assert event.occurred_at.isoformat(sep=" ") == waiting["received_at"]
    assert (event.event_id, event.recorded_at > event.occurred_at) == (waiting["event_id"], True)


def test_files_of_the_spool_are_for_their_owner_alone(run: Run, path: Path) -> None:
    with locked(path):
        run("record", "--lenient", "--busy-timeout", "0", stdin=hook())
    spool = path.with_name("aegis.db-spool")
    (file,) = spool.glob("*.json")
    assert (spool.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("kind", ["damaged", "empty", "another schema", "a directory", "not a store", "read-only"])
def test_whatever_is_the_matter_with_the_store_the_event_waits_and_the_store_is_left_as_it_is(
    run: Run, path: Path, kind: str
) -> None:
    whole = path.read_bytes()
    if kind == "a directory":
        path.unlink()
        path.mkdir()
    elif kind == "another schema":
        with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
    elif kind == "read-only":
        with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
            connection.execute("CREATE TRIGGER no BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'readonly database'); END")
    else:
        path.write_bytes({"damaged": whole[:5000], "empty": b"", "not a store": b"text" * 100}[kind])
    before = path.read_bytes() if path.is_file() else None
    spooled(run("record", "--lenient", stdin=hook()), "aegis.db-spool")
    assert run("spool", "flush").returncode in (1, 5)
    assert len(shown(run)) == 1
    assert kind == "read-only" or (path.read_bytes() if path.is_file() else None) == before
    if kind == "a directory":
        path.rmdir()
    path.write_bytes(whole)
    assert run("spool", "flush").stdout == "1 event brought in.\n"
    assert types(path) == ["PreToolUse"]


def test_an_event_for_a_directory_waits_and_how_it_comes_in_is_told(run: Run, path: Path, tmp_path: Path) -> None:
    (tmp_path / "stores").mkdir()
    done = run("record", "--lenient", "--db", "stores", stdin=hook())
    spooled(done, "an event waits in", "directory", "move what waits to NAME-spool beside the file NAME")
    (tmp_path / "stores-spool").rename(tmp_path / "stores" / "agents.db-spool")
    assert run("spool", "flush", "--db", "stores/agents.db").stdout == "1 event brought in.\n"
    assert types(tmp_path / "stores" / "agents.db") == ["PreToolUse"]


def test_an_event_waits_in_the_state_directory_where_nothing_can_be_written_beside_the_store(
    run: Run, path: Path, state: Path
) -> None:
    path.with_name("aegis.db-spool").write_text("in the way")
    with locked(path):
        spooled(run("record", "--lenient", "--busy-timeout", "0", stdin=hook()), str(state))
        (waiting,) = shown(run)
        assert Path(waiting["file"]).is_relative_to(state)
        assert shown(run, AEGIS_STORE_URL=str(path.with_name("other.db"))) == []
    assert run("spool", "flush").stdout == "1 event brought in.\n"
    assert types(path) == ["PreToolUse"]


def test_where_nothing_can_be_written_at_all_the_loss_is_told_and_the_agent_goes_on(run: Run, path: Path, state: Path) -> None:
    for place in (path.with_name("aegis.db-spool"), state):
        place.write_text("in the way")
    with locked(path):
        spooled(run("record", "--lenient", "--busy-timeout", "0", stdin=hook()), "an event is lost")
    spooled(run("record", "--lenient", "--db", "postgresql://localhost/x", stdin=hook()), "an event is lost")


def test_an_installation_that_does_not_work_is_no_reason_to_lose_an_event(run: Run, path: Path) -> None:
    command = [*COMMAND, "record", "--lenient", "--db", str(path)]
    environment = {**os.environ, driver.DRIVER_VARIABLE: "nonsense"}
    done = subprocess.run(command, input=hook().decode(), env=environment, capture_output=True, text=True, check=False)
    spooled(done, "an event waits", "'nonsense'")
    assert run("spool", "flush").stdout == "1 event brought in.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_an_event_that_finds_no_room_in_the_store_waits_until_there_is(run: Run, path: Path) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    command = [*COMMAND, "record", "--lenient", "--db", str(path)]
    for name in ("SessionStart", "PreToolUse"):
        done = subprocess.run(command, input=hook(name), capture_output=True, preexec_fn=no_room, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (0, b"", 1), done.stderr
    assert len(shown(run)) == 2
    silent(run("record", "--lenient", stdin=hook("Stop")))
    assert types(path) == ["SessionStart", "PreToolUse", "Stop"]


def heeding_signals(command: list[str]) -> "subprocess.Popen[bytes]":
    """It, with pipes, and with the signals that are ignored in a suite that nohup has started, or a shell in the background."""

    def heed() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=heed)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_agent_that_loses_patience_does_not_lose_the_event(run: Run, path: Path, name: str) -> None:
    with locked(path):
        command = [*COMMAND, "record", "--lenient", "--busy-timeout", "60", "--db", str(path)]
        with heeding_signals(command) as process:
            assert process.stdin is not None
            process.stdin.write(hook())
            process.stdin.close()
            assert path.with_name("aegis.db-lock").exists() or _appears(path.with_name("aegis.db-lock"))
            process.send_signal(getattr(signal, name))
            assert process.wait(60) == 0
    assert run("spool", "flush").stdout == "1 event brought in.\n"
    assert types(path) == ["PreToolUse"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_agent_that_loses_patience_with_stdin_open_does_not_lose_the_event(path: Path, name: str) -> None:
    command = [sys.executable, "-c", WAITS_FOR_STDIN, "record", "--lenient", "--db", str(path)]
    with heeding_signals(command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(hook())
        process.stdin.flush()
        assert process.stdout.readline() == b"has come\n"
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == 0
        assert "stdin is still open and the call interrupted" in process.stderr.read().decode()
    assert types(path) == ["PreToolUse"]


WAITS_FOR_STDIN = """
import os

from aegis_store.cli import main

read = os.read


def told(descriptor, most):
    if descriptor == 0 and told.pieces == 1:
        print("has come", flush=True)
    told.pieces += descriptor == 0
    return read(descriptor, most)


told.pieces = 0
os.read = told
main()
"""
"""Says when it has read the first piece, and is about to wait for the next."""


def _appears(file: Path) -> bool:
    end_s = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end_s:
        time.sleep(0.01)
    return file.exists()


# Bringing it in


def spool_some(run: Run, path: Path, *sent: bytes) -> None:
    with locked(path):
        for each in sent:
            spooled(run("record", "--lenient", "--busy-timeout", "0", stdin=each))


def test_a_flush_says_what_it_did(run: Run, path: Path) -> None:
    spool_some(run, path, hook("a"), hook("b"))
    done = run("spool", "flush", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"recorded": 2, "rejected": [], "waiting": 0, "stuck": {}})
    assert json.loads(run("spool", "flush", "--json").stdout) == {"recorded": 0, "rejected": [], "waiting": 0, "stuck": {}}


def test_a_flush_with_nothing_to_do_makes_no_store(run: Run, tmp_path: Path) -> None:
    assert run("spool", "flush").stdout == "No event waits.\n"
    assert run("spool", "show").stdout == "No event waits.\n"
    assert not (tmp_path / "aegis.db").exists()


def test_what_the_store_turns_out_to_refuse_is_set_aside_and_stops_nothing(run: Run, path: Path) -> None:
    with EventStore.open(path) as store:
        store.create_session("theirs", tenant="another")
    spool_some(run, path, hook("a"), hook(session_id="theirs"), hook("c"))
    first = min(path.with_name("aegis.db-spool").glob("*.json"))
    too_large = first.with_name("00000000000000000000-x.json")
    too_large.write_text(first.read_text().replace("ls", "x" * 1_100_000))
    damaged = too_large.with_name("00000000000000000001-x.json")
    damaged.write_bytes(b'{"cut off')
    done = run("spool", "flush", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["recorded"], len(report["rejected"]), report["waiting"]) == (7, 2, 3, 0)
    reasons = {Path(found["file"]).name: found["reason"] for found in shown(run)}
    assert "over the limit" in reasons[too_large.name]
    assert any("is taken" in reason for reason in reasons.values())
    assert damaged.name in reasons
    assert types(path) == ["a", "c"]
    assert run("spool", "flush").returncode == 0
    assert len(shown(run)) == 3


def test_what_waits_and_what_was_set_aside_is_shown_by_inspect_and_health(run: Run, path: Path) -> None:
    assert "to look at" not in run("inspect").stdout
    spool_some(run, path, hook("a"), hook("b"))
    spooled(run("record", "--lenient", stdin=b"[]"), "set aside")
    shown = " ".join(run("inspect").stdout.split())
    assert "2 events in the spool, not recorded yet: aegis-store spool flush brings them in" in shown
    assert "1 event set aside in the spool, not recorded: aegis-store spool show tells why" in shown
    with EventStore.open(path, read_only=True) as store:
        health = store.health()
    assert (health.spooled_events, health.rejected_events, health.ok) == (2, 1, False)
    run("spool", "flush")
    assert json.loads(run("inspect", "--json").stdout)["health"]["spooled_events"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_spool_that_is_a_link_to_itself_is_in_nobodys_way(run: Run, path: Path, state: Path) -> None:
    path.with_name("aegis.db-spool").symlink_to("aegis.db-spool")
    silent(run("record", "--lenient", stdin=hook("a")))
    spool_some(run, path, hook("b"))
    with EventStore.open(path, read_only=True) as store:
        assert store.health().spooled_events == 1
    silent(run("record", "--lenient", stdin=hook("c")))
    assert types(path) == ["a", "b", "c"]


def test_a_spool_that_cannot_be_read_is_a_problem_and_no_failure_of_health(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventStore.open(path) as store:
        monkeypatch.setattr("aegis_store.spool._files", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert store.health().problems == ("the spool cannot be read: Input/output error",)


def test_an_end_sets_the_status_although_the_clock_was_set_back(path: Path) -> None:
    from aegis_store import recording, spool
    from aegis_store.target import Target

    for name, ahead in (("SessionStart", timedelta(hours=1)), ("SessionEnd", timedelta(0))):
        received = spool.Received(
            content=hook(name),
            event_id=name,
            received_at=datetime.now(UTC) + ahead,
            session_field="session_id",
            type_field="hook_event_name",
            tenant="default",
            owner="default",
        )
        recording.record(Target.of(path), received, busy_timeout_ms=1000)
    assert status(path) == "completed"


@pytest.mark.parametrize("name", ["session_field", "type_field"])
def test_a_file_of_the_spool_without_names_of_fields_is_set_aside_and_stops_nothing(run: Run, path: Path, name: str) -> None:
    spool_some(run, path, hook("a"), hook("b"))
    first = min(path.with_name("aegis.db-spool").glob("*.json"))
    first.write_text(json.dumps(json.loads(first.read_text()) | {name: None}))
    done = run("spool", "flush", "--json")
    assert (done.returncode, json.loads(done.stdout)["recorded"]) == (7, 1)
    assert types(path) == ["b"]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links")
def test_what_is_no_file_in_the_spool_is_neither_waited_for_nor_in_the_way(run: Run, path: Path) -> None:
    spool_some(run, path, hook("a"))
    spool = path.with_name("aegis.db-spool")
    os.mkfifo(spool / "0.json")
    (spool / "1.json").mkdir()
    (spool / "2.json").symlink_to("2.json")
    silent(run("record", "--lenient", stdin=hook("b")))
    assert json.loads(run("spool", "flush", "--json").stdout) == {"recorded": 0, "rejected": [], "waiting": 0, "stuck": {}}
    assert types(path) == ["a", "b"]


@pytest.mark.parametrize("kind", ["read", "removed", "set aside"])
def test_a_file_that_cannot_be_read_or_moved_waits_on_and_holds_up_no_other(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from aegis_store import recording, spool
    from aegis_store.target import Target

    spool_some(run, path, hook("a"), hook("b"))
    theirs = min(path.with_name("aegis.db-spool").glob("*.json"))
    if kind == "set aside":
        theirs.write_text("{")
    does = {"read": "read_bytes", "removed": "unlink", "set aside": "rename"}[kind]
    module, name = (os, "replace") if kind == "set aside" else (Path, does)
    original = getattr(module, name)

    def refused(file: Path, *arguments: Any, **options: Any) -> Any:
        if file == theirs:
            raise PermissionError(13, "Permission denied", str(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr(module, name, refused)
    received = spool.Received(
        content=hook("c"),
        event_id="c",
        received_at=datetime.now(UTC),
        session_field="session_id",
        type_field="hook_event_name",
        tenant="default",
        owner="default",
    )
    recording.record(Target.of(path), received, busy_timeout_ms=1000, only_in_order=True)
    assert types(path) == (["a", "b", "c"] if kind == "removed" else ["b", "c"])
    report = recording.flush(Target.of(path), busy_timeout_ms=1000)
    assert (list(report.stuck), report.waiting) == ([theirs], 1)
    assert "Permission denied" in report.stuck[theirs]
    monkeypatch.undo()
    assert run("spool", "flush").returncode == (7 if kind == "set aside" else 0)
    assert types(path).count("a") == (kind != "set aside")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions")
def test_a_flush_names_the_file_that_it_cannot_read(run: Run, path: Path) -> None:
    spool_some(run, path, hook("a"), hook("b"))
    theirs = min(path.with_name("aegis.db-spool").glob("*.json"))
    theirs.chmod(0)
    done = run("spool", "flush")
    assert (done.returncode, types(path)) == (1, ["b"])
    assert "1 event brought in." in done.stdout
    assert "waits on: Permission denied" in " ".join(done.stdout.split())


def test_an_event_that_was_set_aside_comes_in_once_its_file_is_moved_back(run: Run, path: Path) -> None:
    spooled(run("record", "--lenient", stdin=hook(tool_response="x" * 1_100_000)), "set aside")
    (aside,) = (Path(found["file"]) for found in shown(run))
    run("policy", "set", "--max-event-bytes", "2MiB")
    aside.rename(aside.parent.parent / aside.name)
    assert run("spool", "flush").stdout == "1 event brought in.\n"
    assert types(path) == ["PreToolUse"]


def test_an_event_that_was_recorded_but_not_taken_out_of_the_spool_is_not_recorded_twice(run: Run, path: Path) -> None:
    spool_some(run, path, hook("SessionStart"), hook("SessionEnd"))
    files = {file: file.read_bytes() for file in path.with_name("aegis.db-spool").glob("*.json")}
    run("spool", "flush")
    for file, content in files.items():
        file.write_bytes(content)
    assert run("spool", "flush").stdout == "2 events brought in.\n"
    assert types(path) == ["SessionStart", "SessionEnd"]


def test_many_come_in_in_the_order_in_which_they_were_received_with_their_statuses(run: Run, path: Path) -> None:
    names = [*(f"e{number}" for number in range(140)), "SessionStart", "SessionEnd"]
    spool_some(run, path, hook("SessionStart"))
    spool = path.with_name("aegis.db-spool")
    (file,) = spool.glob("*.json")
    content = json.loads(file.read_text())
    for number, name in enumerate(names, 1):
        made = {**content, "event_id": f"id-{number}", "content": hook(name).decode()}
        (spool / f"{int(file.name[:20]) + number:020}-{number}.json").write_text(json.dumps(made))
    assert run("spool", "flush").stdout == "143 events brought in.\n"
    assert types(path) == ["SessionStart", *names]
    assert status(path) == "completed"


def test_an_end_that_comes_in_after_the_session_was_resumed_does_not_end_it(run: Run, path: Path) -> None:
    silent(run("record", stdin=hook("SessionStart")))
    spool_some(run, path, hook("SessionEnd"))
    waiting = {file: file.read_bytes() for file in path.with_name("aegis.db-spool").glob("*.json")}
    for file in waiting:
        file.unlink()
    silent(run("record", stdin=hook("SessionStart")))
    for file, content in waiting.items():
        file.write_bytes(content)
    assert run("spool", "flush").stdout == "1 event brought in.\n"
    assert types(path) == ["SessionStart", "SessionStart", "SessionEnd"]
    assert status(path) == "running"


def test_what_a_killed_process_left_half_written_is_no_event_and_goes_some_time(run: Run, path: Path) -> None:
    spool_some(run, path, hook())
    spool = path.with_name("aegis.db-spool")
    old, new = spool / "1-x.json.99.tmp", spool / "2-x.json.99.tmp"
    for draft in (old, new):
        draft.write_bytes(b'{"version": 1, "cont')
    os.utime(old, (0, 0))
    assert run("spool", "flush").stdout == "1 event brought in.\n"
    assert (old.exists(), new.exists()) == (False, True)


def test_what_is_shown_of_a_hostile_event_is_printable(run: Run, path: Path) -> None:
    hostile = "\x1b[31m\u202e\ud83d"
    spool_some(run, path, hook(name="日本語" * 30, session_id="s" * 100, tool_response=hostile))
    spooled(run("record", "--lenient", "--session-field", hostile.replace("\ud83d", ""), stdin=hook()), "set aside")
    said = run("spool", "show")
    assert said.stdout.replace("\n", "").isprintable()
    assert "set aside" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80


# How long it takes


def test_recording_in_a_standing_store_imports_nothing_that_it_does_not_need(path: Path) -> None:
    """Which is what it would take its time for."""
    EventStore.open(path).close()
    code = (
        "import sys; sys.argv = ['aegis-store', 'record', '--lenient', '--db', sys.argv[1]]\n"
        "from aegis_store.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('alembic', 'psycopg', 'rich.console') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], input=hook(), capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"
    assert types(path) == ["PreToolUse"]
