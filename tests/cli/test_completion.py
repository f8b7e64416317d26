"""What Tab completes, asked as the shells ask: bash itself, where it is; zsh and fish by their protocol."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_store import EventStore, Status, driver, session_ids
from aegis_store.cli.app import app
from tests.cli.conftest import Run

PROGRAMS = Path(sys.executable).parent
DANGEROUS = ("it is", "qu'ote", 'dq"x', "$(touch pwned)", "`touch pwned`", "a;touch pwned", "*", "~root", "-rf", "a&b", "a\\b")

Complete = Callable[..., list[str]]


@pytest.fixture
def filled(path: Path) -> Path:
    with EventStore.open(path, durability="process") as store:
        for session_id in ("run-1", "run-2", "agent:1", "agent:12", "日本", *DANGEROUS):
            store.create_session(session_id)
    return path


@pytest.fixture
def complete(run: Run) -> Complete:
    """What the words are completed to; the last of them is the one that the cursor is on."""

    def complete_words(*words: str, **environment: str) -> list[str]:
        line = " ".join(("aegis-store", *words))
        done = run(_AEGIS_STORE_COMPLETE="complete_fish", _TYPER_COMPLETE_ARGS=line, **FISH, **environment)
        assert done.stderr == ""
        return [line for line in done.stdout.splitlines() if line]

    return complete_words


FISH = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}


@pytest.mark.parametrize("command", ["inspect", "events", "tail", "export x.jsonl --session"])
def test_ids_of_sessions_are_completed_wherever_one_is_asked_for(complete: Complete, filled: Path, command: str) -> None:
    assert sorted(complete(*command.split(), "run")) == ["run-1", "run-2"]


def test_every_argument_and_option_that_takes_a_session_completes_it() -> None:
    for command in app.registered_commands:
        for annotation in (command.callback.__annotations__ if command.callback else {}).values():
            for parameter in getattr(annotation, "__metadata__", ()):
                assert (parameter.metavar in ("SESSION", "STATUS")) <= (parameter.autocompletion is not None)
                assert parameter.metavar != "ID"  # one word for one thing


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sessions --status c", ["closing", "closed", "completed"]),
        ("policy set --mode ", ["enforce", "warn"]),
        ("policy set --max-events ", ["unlimited"]),
        ("policy set --max-age n", ["none"]),
        ("bench --only app", ["append", "append-many"]),
    ],
)
def test_values_of_which_there_are_few_are_completed(complete: Complete, words: str, expected: list[str]) -> None:
    assert complete(*words.split(" ")) == expected


def test_all_statuses_are(complete: Complete) -> None:
    assert complete("sessions", "--status", "") == list(Status)


def test_the_store_is_the_one_that_the_line_or_the_environment_names(complete: Complete, filled: Path, tmp_path: Path) -> None:
    moved = filled.rename(tmp_path / "other.db")
    assert complete("events", "run") == []
    expected = ["run-1", "run-2"]
    assert sorted(complete("--db", "other.db", "events", "run")) == expected
    assert sorted(complete("events", "--db", "other.db", "run")) == expected
    assert sorted(complete("events", "--db=other.db", "run")) == expected
    assert sorted(complete("events", "run", AEGIS_STORE_URL=f"sqlite:///{moved}")) == expected


def test_an_id_that_a_shell_could_take_for_something_else_is_left_out(complete: Complete, filled: Path) -> None:
    assert sorted(complete("events", "")) == ["agent:1", "agent:12", "run-1", "run-2", "日本"]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("notes\n"),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000),
        lambda path: path.write_bytes(path.read_bytes()[:20_000]),
        lambda path: path.with_name("aegis.db-wal").write_bytes(b"left behind"),
    ],
    ids=["missing", "directory", "empty", "text", "corrupt", "cut off", "somebody died"],
)
def test_a_store_that_cannot_be_read_completes_nothing_and_is_left_alone(
    complete: Complete, filled: Path, make: Callable[[Path], object]
) -> None:
    make(filled)
    before = {file: file.is_file() and file.read_bytes() for file in filled.parent.iterdir()}
    assert complete("events", "run") == []
    assert {file: file.is_file() and file.read_bytes() for file in filled.parent.iterdir()} == before


@pytest.mark.parametrize(
    "words", ["nonsense run", "events --bogus x run", "--db", "events --db  run", "events '", 'events "$(']
)
def test_a_line_that_makes_no_sense_is_no_complaint(complete: Complete, filled: Path, words: str) -> None:
    complete(*words.split(" "))


def test_no_file_is_made_and_none_is_changed(complete: Complete, filled: Path) -> None:
    before = {file.name: file.read_bytes() for file in filled.parent.iterdir()}
    complete("events", "run")
    assert {file.name: file.read_bytes() for file in filled.parent.iterdir()} == before


def test_what_a_writer_has_just_created_is_there(complete: Complete, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.create_session("run-3")
        assert complete("events", "run-3") == ["run-3"]
        store.append("run-3", "t", 0)


def test_a_store_that_somebody_holds_completes_without_waiting_for_him(complete: Complete, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store, store._db.write():
        assert "run-1" in complete("events", "run")


@pytest.fixture
def crowd(path: Path) -> Path:
    with EventStore.open(path, durability="process") as store, store._db.write() as conn:
        for start in range(0, 30_000, 10_000):
            conn.exec_driver_sql(
                "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) "
                "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at) "
                f"SELECT printf('s-%06d', i + {start}), 't', 'o', 'running', 0, i + {start} FROM n"
            )
    return path


def test_the_newest_fifty_come_first(crowd: Path) -> None:
    newest = [f"s-{number:06}" for number in range(29_999, 29_949, -1)]
    assert session_ids.newest(crowd, "", 50) == session_ids.newest(crowd, "s-", 50) == newest
    assert session_ids.newest(crowd, "s-0001", 3) == ["s-000199", "s-000198", "s-000197"]
    assert session_ids.newest(crowd, "none", 50) == []


def test_the_work_is_bounded_whatever_the_store_holds(crowd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connect = driver.dbapi.connect

    def counted(*arguments: object, **options: object) -> object:
        connection = connect(*arguments, **options)
        connection.set_progress_handler(count, 100)
        return connection

    monkeypatch.setattr(driver.dbapi, "connect", counted)
    for prefix in ("", "s-", "s-0001", "none"):
        steps = 0
        session_ids.newest(crowd, prefix, 50)
        assert steps < 1000, prefix  # a hundred instructions each; 30,000 sessions would take 2,000 at the least


@pytest.fixture
def bash(tmp_path: Path) -> Callable[..., list[str]]:
    """What real bash offers for a line that it has split into words, with the function that `--install-completion` installs."""
    if shutil.which("bash") is None or not (PROGRAMS / "aegis-store").exists():
        pytest.skip("needs bash and the installed program")
    environment = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("AEGIS_STORE_URL", None)

    def complete_words(*words: str, at: int | None = None) -> list[str]:
        script = """
            eval "$(_AEGIS_STORE_COMPLETE=source_bash aegis-store)" || exit 9
            COMP_CWORD=$1; shift; COMP_WORDS=(aegis-store "$@"); COMPREPLY=()
            _aegis_store_completion aegis-store
            printf '%s\\n' "${COMPREPLY[@]}"
        """
        cursor = len(words) if at is None else at
        done = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", str(cursor), *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return sorted(filter(None, done.stdout.splitlines()))

    return complete_words


def test_bash_completes_and_nothing_in_an_id_is_run(bash: Complete, filled: Path) -> None:
    assert bash("events", "") == ["agent:1", "agent:12", "run-1", "run-2", "日本"]
    assert bash("events", "'run") == ["run-1", "run-2"]
    assert not list(filled.parent.glob("pwned"))


def test_bash_gets_what_comes_after_its_colon_and_its_equals_sign(bash: Complete, filled: Path) -> None:
    assert bash("events", "agent", ":") == bash("events", "agent", ":", "1") == ["1", "12"]
    assert bash("export", "x.jsonl", "--session", "=", "agent", ":", "1") == ["1", "12"]
    assert bash("sessions", "--status", "=", "f") == ["failed"]


def test_bash_finds_the_store_that_is_named_behind_the_cursor_too(bash: Complete, filled: Path, tmp_path: Path) -> None:
    filled.rename(tmp_path / "other.db")
    assert bash("events", "run", "--db", "other.db", at=2) == ["run-1", "run-2"]
    assert bash("events", "run", "--db", "=", "other.db", at=2) == ["run-1", "run-2"]
    assert bash("--db", "=", "other.db", "events", "run") == ["run-1", "run-2"]


def test_zsh_gets_what_it_can_evaluate(run: Run, filled: Path) -> None:
    done = run(_AEGIS_STORE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="aegis-store events run")
    assert done.stderr == ""
    head, *ids = done.stdout.replace("))'", "").replace("((", "((\n").split()[1:]
    assert sorted(each.strip('"') for each in ids if "run" in each) == ["run-1", "run-2"], head


def test_it_takes_no_longer_than_the_help(filled: Path) -> None:
    """Neither SQLAlchemy nor anything else that is heavy."""
    code = (
        "import sys, os; sys.argv = ['aegis-store']\n"
        "from aegis_store.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('sqlalchemy', 'alembic', 'rich.console') if m in sys.modules])"
    )
    given = {"_AEGIS_STORE_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "aegis-store events run", **FISH}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=filled.parent, env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.splitlines()) == ["[]", "run-1", "run-2"]
