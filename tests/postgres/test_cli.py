"""The command line with a URL of PostgreSQL, each command as a user has it, and no password in anything that it says."""

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from aegis_store import EventStore, NewEvent
from tests.cli.conftest import Run
from tests.cli.conftest import run as run
from tests.cli.conftest import signals as signals
from tests.postgres.server import Postgres, connect

PASSWORD = "".join(reversed("miehegssorg"))  # it stands in no line of code, which a traceback would show
HOOK = {"session_id": "hooked", "hook_event_name": "SessionStart"}

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def url(postgres_url: str) -> str:
    """A store with something in it, named by a URL with a password."""
    with EventStore.open(postgres_url, durability="process", maintain_every=None) as store:
        for name in ("live", "ended"):
            store.create_session(name)
            store.append_many(name, [NewEvent(type="note", payload={"n": number}) for number in range(5)])
        store.set_status("ended", "completed")
    return make_url(postgres_url).set(password=PASSWORD).render_as_string(hide_password=False)


@pytest.fixture
def command(run: Run, url: str, tmp_path: Path) -> Command:
    """Runs a command on that store, in 80 columns; what it says has no password in it."""

    def run_one(*arguments: str, code: int = 0, stdin: bytes | None = None) -> "subprocess.CompletedProcess[str]":
        state = str(tmp_path / "state")
        done = run(*arguments, stdin=stdin, AEGIS_STORE_URL=url, COLUMNS="80", XDG_STATE_HOME=state)
        said = done.stdout + done.stderr
        assert PASSWORD not in said
        assert "Traceback" not in said
        assert done.returncode == code, said
        if "--json" not in arguments:
            lines = [line for line in done.stdout.splitlines() if "postgresql+psycopg://" not in line]
            assert max(map(len, lines), default=0) <= 80, done.stdout
        return done

    return run_one


def in_json(done: "subprocess.CompletedProcess[str]") -> Any:
    return json.loads(done.stdout)


# Each command


def test_what_looks_shows_what_is_there(command: Command) -> None:
    at_a_glance = command("inspect").stdout
    assert "of tables and indexes" in at_a_glance
    assert "PostgreSQL" in at_a_glance
    assert "free pages" not in at_a_glance
    assert "note" in command("inspect", "live").stdout
    assert "ended" in command("sessions").stdout
    assert command("events", "live").stdout.count("note") == 5
    assert command("tail").stdout.count("note") == 10
    assert "1000" in command("policy", "show").stdout
    assert "No event waits" in command("spool", "show").stdout


def test_inspect_as_json_names_the_database(command: Command) -> None:
    found = in_json(command("inspect", "--json"))
    assert found["postgresql"]
    assert (found["events"], found["health"]["ok"]) == (10, True)
    assert "sqlite" not in found


def test_a_page_holds_no_password(command: Command, tmp_path: Path) -> None:
    for name, arguments in (("store.html", ()), ("live.html", ("live",))):
        command("inspect", *arguments, "--html", name)
        page = (tmp_path / name).read_text()
        assert "note" in page
        assert PASSWORD not in page


def test_append_and_record_store_events(command: Command) -> None:
    assert in_json(command("append", "live", "note", '{"n": 6}', "--json"))["seq"] == 6
    event = in_json(command("record", "--json", stdin=json.dumps(HOOK).encode()))
    assert (event["session_id"], event["seq"], event["payload"]) == ("hooked", 1, HOOK)
    command("record", stdin=json.dumps({**HOOK, "hook_event_name": "SessionEnd"}).encode())
    assert [each["status"] for each in in_lines(command("sessions", "--json")) if each["session_id"] == "hooked"] == [
        "completed"
    ]


def in_lines(done: "subprocess.CompletedProcess[str]") -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_prune_shows_first_and_removes_then(command: Command, tmp_path: Path) -> None:
    shown = command("prune").stdout
    assert "aegis-store prune --yes\n" in shown  # the environment names the store
    assert "5" in shown
    assert "Removed 5 events" in command("prune", "--yes", "--archive", "gone").stdout
    assert len(list((tmp_path / "gone").iterdir())) == 1
    assert "cli" in command("prune", "--history").stdout
    assert in_json(command("inspect", "--json"))["removed_events"] == 5


def test_a_command_to_type_holds_no_password_that_was_hidden(run: Run, url: str) -> None:
    done = run("prune", "--db", url)
    assert "aegis-store prune --yes --db URL\n" in done.stdout
    assert PASSWORD not in done.stdout


def test_the_policy_is_set(command: Command) -> None:
    assert "add --yes" in command("policy", "set", "--max-events", "2", code=2).stderr
    command("policy", "set", "--max-events", "2", "--yes")
    assert in_json(command("policy", "show", "--json"))["max_events"] == 2
    assert in_json(command("inspect", "--json"))["events"] == 4


def test_verify_doctor_and_upgrade_tell_how_it_is(command: Command, url: str) -> None:
    assert "All is well" in command("verify").stdout
    report = in_json(command("verify", "--json"))
    assert (report["ok"], report["events"]) == (True, 10)
    code = 5 if any(each.state == "problem" for each in EventStore.doctor(url).findings) else 0  # fsync may be off here
    assert "triggers" in command("doctor", code=code).stdout
    assert in_json(command("doctor", "--json", code=code))["store"].startswith("postgresql")
    assert "already" in command("upgrade").stdout


def test_what_verify_finds_ends_with_code_5(command: Command, postgres_url: str) -> None:
    with connect(postgres_url) as shell:
        shell.execute("SET session_replication_role = replica")
        shell.execute("DELETE FROM event WHERE seq = 3")
    assert "event 3 is missing" in command("verify", code=5).stdout


def test_export_and_import_go_there_and_back(command: Command, run: Run, tmp_path: Path) -> None:
    command("export", "all.jsonl.gz")
    command("import", "all.jsonl.gz")
    assert run("import", "all.jsonl.gz", "--db", "copy.db").returncode == 0
    with EventStore.open(tmp_path / "copy.db", prune_on_open=False) as copy:
        assert copy.stats().events == 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("reclaim",), "VACUUM"),
        (("reclaim", "--compact"), "VACUUM"),
        (("backup", "copy"), "pg_dump"),
        (("restore", "copy"), "pg_restore"),
    ],
)
def test_what_is_for_files_says_what_does_it_here(command: Command, arguments: tuple[str, ...], told: str) -> None:
    assert told in command(*arguments, code=2).stderr


def test_the_demo_plays_on_files_alone(run: Run, url: str) -> None:
    done = run("demo", "--db", url)
    assert (done.returncode, "name a path" in done.stderr, PASSWORD in done.stderr) == (2, True, False)


def test_unknown_sessions_and_lost_cursors_have_their_codes(command: Command) -> None:
    assert "no session 'nobody'" in command("events", "nobody", code=3).stderr
    assert command("events", "live", "--after", "99", code=4).stderr
    command("policy", "set", "--max-events", "2", "--yes")
    assert "--skip-gap" in command("events", "live", "--after", "0", code=4).stderr


def test_sessions_are_completed(command: Command, run: Run, url: str) -> None:
    line = {"COMP_WORDS": "aegis-store\nevents\nli", "COMP_CWORD": "2", "_AEGIS_STORE_COMPLETE": "complete_bash"}
    done = run(AEGIS_STORE_URL=url, **line)
    assert done.stdout.split() == ["live"]
    assert run(AEGIS_STORE_URL="postgresql+psycopg://127.0.0.1:1/x", **line).stdout.strip() == ""


def test_a_password_among_the_options_of_the_url_is_hidden_too(run: Run, url: str) -> None:
    named = make_url(url).set(password="").update_query_dict({"password": PASSWORD}).render_as_string(hide_password=False)
    for arguments in (("inspect",), ("inspect", "--json"), ("upgrade",), ("doctor",), ("prune",), ("policy", "show")):
        done = run(*arguments, "--db", named)
        assert (done.returncode in (0, 5), PASSWORD in done.stdout + done.stderr) == (True, False), done.stderr


def test_no_help_shows_the_url_of_the_environment(run: Run) -> None:
    url = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/x"
    for arguments in ((), ("--help",), ("inspect", "--help"), ("record", "--help")):
        done = run(*arguments, AEGIS_STORE_URL=url)
        assert (done.returncode, PASSWORD in done.stdout + done.stderr) == (0, False)


def test_the_server_sees_no_password_in_what_a_connection_is_called(url: str) -> None:
    with EventStore.open(url, maintain_every=None) as store, connect(url) as shell:
        store.append("live", "note", 1)
        assert PASSWORD not in str(shell.execute("SELECT * FROM pg_stat_activity").fetchall())


# The spool


def test_what_a_server_cannot_take_waits_in_the_state_directory(run: Run, tmp_path: Path, postgres: Postgres) -> None:
    with postgres.database() as real:
        named = make_url(real).set(password=PASSWORD)
        away = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/agents"
        state = {"XDG_STATE_HOME": str(tmp_path / "state"), "AEGIS_STORE_URL": away}
        for number in range(2):
            done = run("record", "--lenient", stdin=json.dumps({**HOOK, "n": number}).encode(), **state)
            assert (done.returncode, "an event waits in" in done.stderr, PASSWORD in done.stderr) == (0, True, False)
        (spool,) = (tmp_path / "state" / "aegis-store" / "spool").iterdir()
        assert spool.name.startswith("agents-")
        assert all(PASSWORD not in file.read_text() for file in spool.iterdir())
        shown = run("spool", "show", **state).stdout
        assert "2 events waiting" in shown
        assert PASSWORD not in shown

        # The server comes back: the same URL, whatever the password, finds what waits.
        state["AEGIS_STORE_URL"] = named.render_as_string(hide_password=False)
        spool.rename(spool.with_name(Path(spool_of(state["AEGIS_STORE_URL"])).name))
        assert "2 events brought in" in run("spool", "flush", **state).stdout
        assert run("spool", "show", **state).stdout == "No event waits.\n"
        assert run("events", "hooked", "--json", **state).stdout.count('"n"') == 2


def spool_of(url: str) -> str:
    from aegis_store.any_database import place_at
    from aegis_store.spool import Spool

    (place,) = Spool(place_at(url)).places
    return str(place)


def test_a_new_password_finds_the_same_spool_and_another_server_another() -> None:
    places = [
        spool_of(f"postgresql+psycopg://{rest}")
        for rest in ("me:a@h/x", "me:b@h/x", "me@h/x", "me@h/x?password=c", "me@h/y", "you@h/x", "me@i/x")
    ]
    assert len(set(places[:4])) == 1
    assert len(set(places)) == 4


# What cannot be reached


@contextmanager
def a_server_that_says(message: str) -> Iterator[int]:
    """The port of one that refuses each connection, as PostgreSQL does."""
    fields = b"SFATAL\0VFATAL\0C28P01\0M" + message.encode() + b"\0\0"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    while len(request := connection.recv(4096)) == 8:  # for TLS or GSS
                        connection.sendall(b"N")
                    if request:
                        connection.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_a_wrong_password_is_told_and_not_shown(run: Run) -> None:
    with a_server_that_says('password authentication failed for user "me"') as port:
        done = run("sessions", "--db", f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{port}/x")
    assert (done.returncode, PASSWORD in done.stderr) == (5, False)
    assert "check the user, the password and the database" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_database_is_told(run: Run, postgres_url: str) -> None:
    url = make_url(postgres_url).set(database="nothing_here", password=PASSWORD).render_as_string(hide_password=False)
    done = run("sessions", "--db", url)
    assert (done.returncode, PASSWORD in done.stderr) == (5, False)
    assert '"nothing_here" does not exist' in done.stderr


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg://me:{0}@127.0.0.1:1/x", "no connection"),
        ("postgresql+psycopg://me:{0}@no.such.host.invalid/x", "no connection"),
        ("postgresql+psycopg://me:{0}@h:port/x", "no URL such as"),
        ("postgresql+psycopg://me:p@{0}@127.0.0.1/x", "%40"),
        ("postgresql+psycopg://127.0.0.1:1/x?passwort={0}", "invalid connection option"),
        ("postgresql://me:{0}@h/x", "begins with postgresql+psycopg://"),
        ("postgres://me:{0}@h/x", "begins with postgresql+psycopg://"),
        ("postgresql+asyncpg://me:{0}@h/x", "begins with postgresql+psycopg://"),
        ("mysql://me:{0}@h/x", "postgresql+psycopg://"),
    ],
)
def test_what_is_no_server_or_no_url_of_one_is_told_in_a_line(run: Run, url: str, told: str) -> None:
    done = run("inspect", "--db", url.format(PASSWORD))
    assert (done.returncode, done.stdout, PASSWORD in done.stderr) == (5, "", False)
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_psycopg_it_is_said_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['psycopg'] = None; from aegis_store.cli import main; main()"
    url = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/x"
    environment = {**os.environ, "AEGIS_STORE_URL": url, "XDG_STATE_HOME": str(tmp_path)}
    for arguments, expected in (("inspect", 5), ("upgrade", 5), ("doctor", 5), ("record --lenient", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, *shlex.split(arguments)],
            env=environment,
            input=json.dumps(HOOK),
            capture_output=True,
            text=True,
            check=False,
        )
        said = " ".join((done.stdout + done.stderr).split())
        assert (done.returncode, PASSWORD in said) == (expected, False), said
        assert "aegis-store[postgres]" in said
        assert "Traceback" not in said
