"""The commands `backup` and `restore`, run as a user runs them."""

import json
from pathlib import Path

from aegis_store import EventStore
from tests.cli.conftest import Run


def test_a_backup_comes_back_as_a_store(run: Run, path: Path) -> None:
    with EventStore.open(path) as store:
        store.ensure_session("s")
        store.append("s", "note", {})
        done = run("backup", "b\x1b[1m.backup", "--db", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "1, each verified" in done.stdout
    done = run("restore", "b\x1b[1m.backup", "--db", "new.db", "--json")
    assert (done.returncode, json.loads(done.stdout)["events"]) == (0, 1)
    assert run("verify", "--db", "new.db").returncode == 0


def test_a_name_that_is_taken_is_wrong_usage_and_a_missing_backup_an_unusable_store(run: Run, path: Path) -> None:
    done = run("backup", path.name, "--db", str(path))
    assert done.returncode == 2
    assert "no file is overwritten" in done.stderr
    assert run("restore", "missing", "--db", "new.db").returncode == 5
    assert run("restore", ".", "--db", "new.db").returncode == 5
