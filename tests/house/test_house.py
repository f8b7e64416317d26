"""The house is tested as a house: exports, import floors, linters, the README, what the front door costs."""

import ast
import importlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aegis_store
from aegis_store import errors

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted((TOP / "aegis_store").rglob("*.py"))
README = (TOP / "README.md").read_text()


def output_of(*command: str, cwd: Path = TOP) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_public_name_can_be_imported_from_the_front_door() -> None:
    for name in aegis_store.__all__:
        assert getattr(aegis_store, name).__module__.startswith("aegis_store") or name.isupper()
    assert set(aegis_store.__all__) <= set(dir(aegis_store))


def test_the_front_door_names_for_type_checkers_what_it_resolves() -> None:
    tree = ast.parse((TOP / "aegis_store/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(aegis_store.__all__)


def test_every_error_of_the_tree_is_public_and_has_the_common_base() -> None:
    tree = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert all(issubclass(error, errors.AegisStoreError) for error in tree)
    assert {error.__name__ for error in tree} <= set(aegis_store.__all__)
    drawn = set(re.findall(r"[├└]── (\w+)|^ {4}(AegisStoreError)$", errors.__doc__ or "", re.MULTILINE))
    assert {name for pair in drawn for name in pair if name} == {error.__name__ for error in tree}


def test_an_error_says_what_happened_then_what_a_program_can_do_and_keeps_both_when_it_is_pickled() -> None:
    found = errors.SessionNotFound(session_id="s")
    busy = errors.StoreBusy(store="a.db", waited_ms=5, detail="is being compacted")
    for error in (found, pickle.loads(pickle.dumps(found))):
        assert (error.what, error.hint) == ("no session 's' in this store", "create_session or ensure_session makes it")
        assert str(error) == f"{error.what}: {error.hint}"
    assert (str(busy), busy.hint) == ("store 'a.db' is being compacted", None)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'EvntStore'"):
        importlib.import_module("aegis_store").EvntStore  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import aegis_store, sys; print([m for m in ('sqlalchemy', 'alembic', 'typer', 'rich', 'sqlite3') if m in sys.modules])"
    )
    assert output_of(sys.executable, "-c", code).strip() == "[]"


def test_help_imports_neither_sqlalchemy_nor_alembic_nor_rich() -> None:
    code = (
        "import sys; sys.argv = ['aegis-store', '--help']\n"
        "from aegis_store.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('sqlalchemy', 'alembic', 'rich.console', 'sqlite3') if m in sys.modules])"
    )
    assert output_of(sys.executable, "-c", code).splitlines()[-1] == "[]"


def test_opening_a_store_that_stands_does_not_import_alembic(path: Path) -> None:
    opened = f"EventStore.open({str(path)!r}).close()"
    code = f"from aegis_store import EventStore; import sys; {opened}; print('alembic' in sys.modules)"
    assert output_of(sys.executable, "-c", code).strip() == "False"


def test_imports_go_down_only() -> None:
    assert "Contracts: 1 kept, 0 broken." in output_of(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")


def test_every_module_has_its_floor() -> None:
    config = (TOP / "pyproject.toml").read_text()
    floors = config[config.index("layers = [") : config.index("]", config.index("layers = ["))]
    rooms = {path.stem if path.parent == TOP / "aegis_store" else path.parent.name for path in SOURCES} - {
        "__init__",
        "aegis_store",
    }
    assert rooms == set(re.findall(r"\w+", floors)) - {"layers"}


def test_the_types_hold() -> None:
    output_of(sys.executable, "-m", "mypy")


def test_the_linter_is_content() -> None:
    output_of(sys.executable, "-m", "ruff", "check", "--no-cache")
    output_of(sys.executable, "-m", "ruff", "format", "--check", "--no-cache")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(TOP)))
def test_no_file_is_a_barn_and_no_function_needs_scrolling(source: Path) -> None:
    text = source.read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            first = body[0].lineno if body else node.lineno
            assert (node.end_lineno or 0) - first <= 50, f"{node.name} is too long"


def test_every_public_method_says_what_it_promises() -> None:
    names = [name for name in dir(aegis_store.EventStore) if not name.startswith("_")]
    for name in names:
        method = getattr(aegis_store.EventStore, name)
        assert not callable(method) or method.__doc__, name


def test_the_store_says_at_its_top_where_each_of_its_methods_is() -> None:
    from aegis_store import store

    listed = re.findall(r"\w+", " ".join(line[16:] for line in (store.__doc__ or "").splitlines() if line.startswith("    ")))
    public = {name for name in dir(aegis_store.EventStore) if not name.startswith("_")} - {"sqlite_version"}
    assert sorted(listed) == sorted(public)


PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readmes_programs_run(tmp_path: Path) -> None:
    outputs = [output_of(sys.executable, "-c", program, cwd=tmp_path) for program in PROGRAMS]
    assert "hook.post_tool_use" in outputs[0]
    assert outputs[1] == "1 hook.post_tool_use\n"
    assert outputs[2] == "100\n"
    assert any(output.startswith("Nothing to prune at ") for output in outputs)


def test_the_readmes_commands_and_its_shell_statements_run(tmp_path: Path) -> None:
    output_of(sys.executable, "-c", PROGRAMS[0], cwd=tmp_path)
    (tmp_path / "aegis-state.json").write_text('{"version": 1, "sessions": [], "events": []}')
    for part in ("migrations", "alembic.ini"):
        (tmp_path / part).symlink_to(TOP / part)
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    commands = re.findall(r"^\$ (.*)$", README, re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    for statement in re.findall(r"```sql\n(.*?)```", README, re.DOTALL):
        shell = "from aegis_store.driver import dbapi; dbapi.connect('agents.db', isolation_level=None)"
        output_of(sys.executable, "-c", f"{shell}.execute({statement!r}).fetchall()", cwd=tmp_path)
    with aegis_store.EventStore.open(tmp_path / "agents.db") as store:
        assert store.read("run-42").events[-1].payload == {"by": "hand"}


def test_three_recorded_hooks_look_as_the_readme_shows_them(tmp_path: Path) -> None:
    record, inspect = (
        line for line in re.findall(r"^\$ (.*)$", README, re.MULTILINE) if "run-7" in line or line.endswith("inspect")
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    for command in (record, inspect):
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=True)
    shown = README.split("The first prints nothing, the second this:\n\n```text\n")[1].split("```")[0]
    assert without_times(done.stdout.decode()) == without_times(shown)


def without_times(picture: str) -> list[str]:
    """Its lines, but for those of the minutes and hours, which depend on when it is."""
    lines = re.sub(r"[\d-]+ \d\d:\d\d:\d\d|SQLite [\d.]+", "…", picture).splitlines()
    start = lines.index("Events appended")
    return lines[:start] + lines[start + 6 :]


def test_the_readme_lists_every_exit_code() -> None:
    from aegis_store.cli import exits

    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = README.split("Run the tests:\n\n```sh\n")[1].split("\n```")[0]
    script = (TOP / ".ci/run").read_text()
    shown = subprocess.run(
        ["bash", "-c", script.replace('cd "$(dirname "$0")/.."', f"cd {TOP}").replace('eval "$command"', "")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == f"+ {command}\n"


def test_the_wheel_carries_what_a_deploy_runs(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(TOP, clone, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis"))
    output_of(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), cwd=clone)
    (wheel,) = tmp_path.glob("*.whl")
    output_of(sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "unpacked"))
    run = "import sys; sys.argv = ['aegis-store', 'upgrade']; from aegis_store.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", run],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "created at schema 0005" in done.stdout, done.stderr


def test_no_text_names_a_package_registry_and_nothing_is_locked() -> None:
    tracked = output_of("git", "ls-files").split() if (TOP / ".git").exists() else []
    assert not [name for name in tracked if name.endswith((".lock", "requirements.txt"))]
    for name in tracked:
        text = (TOP / name).read_text(errors="replace")
        assert "py" + "pi.org" not in text, name
        assert "pythonhosted" + ".org" not in text, name
