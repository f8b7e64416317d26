"""The stores that the entry points use, in files or on a server, and what they tell of an input there."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from aegis_store import EventStore, NewEvent
from aegis_store.redaction import Redact

_TABLES: Final = ("store", "session", "event", "tombstone", "prune_run")


class World:
    """A template, and a store for all inputs of a run, since to make one takes 0.1 s."""

    def __init__(self, template: Path | None = None) -> None:
        in_memory = Path("/dev/shm").is_dir() and "TMPDIR" not in os.environ
        self.directory = Path(tempfile.mkdtemp(prefix="aegis-hostile-", dir="/dev/shm" if in_memory else None))
        self.told: list[object] = []
        """What the entries found out by now, and what must be the same wherever the store is."""
        self._open: dict[object, EventStore] = {}
        self.template = template or self._new_template()

    def _new_template(self) -> Path:
        path = self.directory / "template.db"
        with EventStore.open(path, durability="process") as store:
            store.create_session("s", metadata={"model": "sonnet"})
            store.append_many("s", [NewEvent(type="t", payload={"number": number}) for number in range(20)])
            store.create_session("\u202eevil <b>", tenant="a'b", owner="%s")
            store.append("\u202eevil <b>", "\u2066type", ["\x1b[31m", "\ud800"])
        return path

    @property
    def shared(self) -> EventStore:
        """The store of all inputs."""
        return self.redacting(None)

    def redacting(self, hook: Redact | None) -> EventStore:
        """That store, with that hook."""
        if hook not in self._open:
            self._open[hook] = open_quietly(self.place_of_all(), redact=hook)
        return self._open[hook]

    def place_of_all(self) -> str:
        """Where the store of all inputs is, made when it is asked for first."""
        path = self.directory / "shared.db"
        return str(path if path.exists() else self.copy("shared.db"))

    def place_of_commands(self) -> str:
        """The store of commands that are given none: of which there is one in their directory."""
        return ""

    def fresh(self, name: str) -> str:
        """Where a store is that is as the template, for one input."""
        return str(self.copy(name))

    def copy(self, name: str) -> Path:
        path = self.directory / name
        for suffix in ("", "-wal", "-shm", "-journal", "-lock"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self.template, path)
        return path

    def file(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def close(self) -> None:
        for store in self._open.values():
            store.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class ServerWorld(World):
    """The same on PostgreSQL, in two databases, which are empty: that of all inputs, and that of one."""

    def __init__(self, template: Path, of_all: str, of_one: str) -> None:
        from tests.postgres.server import SharedStore

        super().__init__(template)
        self._of_all, self._of_one = of_all, of_one
        self._emptied = SharedStore(of_one)
        for url in (of_all, of_one):
            EventStore.copy(self.template, url)
        with _shell(self._of_one) as shell:
            shell.execute("CREATE SCHEMA template")
            for table in _TABLES:
                shell.execute(f"CREATE TABLE template.{table} AS TABLE {table}".encode())

    def place_of_all(self) -> str:
        return self._of_all

    def place_of_commands(self) -> str:
        return self._of_one

    def fresh(self, name: str) -> str:
        self._emptied.emptied()
        with _shell(self._of_one) as shell, shell.transaction():
            shell.execute("SET LOCAL session_replication_role = replica")
            shell.execute("DELETE FROM store")
            for table in _TABLES:
                shell.execute(f"INSERT INTO {table} SELECT * FROM template.{table}".encode())
            shell.execute("SELECT setval('event_position', max(position)) FROM event")
            shell.execute("SELECT setval('session_id_seq', max(id)) FROM session")
        return self._of_one

    def close(self) -> None:
        super().close()
        self._emptied.close()


def _shell(url: str) -> Any:
    from tests.postgres.server import connect

    return connect(url)


def open_quietly(place: str, **options: Any) -> EventStore:
    """A store that does nothing by itself."""
    return EventStore.open(place, durability="process", prune_on_open=False, maintain_every=None, **options)


_in_use: ContextVar[World] = ContextVar("_in_use")


def world() -> World:
    """That of this process, in files, unless it runs `using` another."""
    return _in_use.get(None) or of_files()


@cache
def of_files() -> World:
    made = World()
    atexit.register(made.close)
    return made


@contextmanager
def using(other: World) -> Iterator[None]:
    """Inside, the entry points use that one."""
    before = _in_use.set(other)
    try:
        yield
    finally:
        _in_use.reset(before)


def told_by(entry: Callable[[bytes], None], data: bytes, where: World) -> list[object]:
    """What it tells of the input there."""
    where.told.clear()
    with using(where):
        entry(data)
    return list(where.told)


class Both:
    """A world in files and one in two databases, of one template."""

    def __init__(self, of_all: str, of_one: str) -> None:
        self._file = World()
        self._server = ServerWorld(self._file.template, of_all, of_one)

    def compared(self, entry: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """The entry point in both; it raises as well if it does not tell the same."""

        def compare(data: bytes) -> None:
            told = [told_by(entry, data, where) for where in (self._file, self._server)]
            for in_file, on_server in zip_longest(*told, fillvalue="nothing"):
                assert in_file == on_server, f"SQLite tells {in_file!r}, PostgreSQL {on_server!r}"

        return compare

    def close(self) -> None:
        self._server.close()
        self._file.close()
