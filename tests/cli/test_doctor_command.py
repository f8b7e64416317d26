"""The command `doctor`, run as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("columns", ["80", "160"])
def test_it_shows_a_line_each_within_the_terminal_and_what_to_do(run: Run, path: Path, columns: str) -> None:
    path.chmod(0o644)
    done = run("doctor", "--db", str(path), COLUMNS=columns)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines()[1:])) <= int(columns)
    assert "chmod 600" in " ".join(done.stdout.split())


def test_a_problem_is_exit_code_5_and_a_hostile_name_does_no_harm(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J\u202e.db").write_bytes(b"")
    for option in ((), ("--json",)):
        done = run("doctor", "--db", "a\x1b[2J\u202e.db", *option)
        assert (done.returncode, done.stderr) == (5, "")
        assert not {"\x1b", "\u202e"} & set(done.stdout)
    assert json.loads(done.stdout)["state"] == "problem"
