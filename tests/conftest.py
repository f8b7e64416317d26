"""What the tests share: stores that are cheap to make, and a plain SQL shell."""

import compileall
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis_store import EventStore, driver
from tests import forked

if TYPE_CHECKING:
    from tests.postgres.server import Postgres

OpenStore = Callable[..., EventStore]

TOP = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Compile the library: with PYTHONDONTWRITEBYTECODE each process that a test starts would, and keep nothing of it."""
    if not hasattr(config, "workerinput"):  # one does it for all
        for directory in ("aegis_store", "migrations", "tests"):
            compileall.compile_dir(TOP / directory, quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that no worker waits for it at the end: the suite on the other driver."""
    items.sort(key=lambda item: item.path.name != "test_drivers.py")


@pytest.fixture(scope="session")
def context() -> ForkServerContext:
    """Starts processes in milliseconds: each is a fork of one that has imported all and opened nothing."""
    return forked.context()


@pytest.fixture
def chance() -> random.Random:
    """A fresh seed each time; pytest shows it when the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, made once as every store is made: through the migrations."""
    path = tmp_path_factory.mktemp("template") / "aegis.db"
    EventStore.open(path).close()
    return path


@pytest.fixture
def path(tmp_path: Path, template: Path) -> Path:
    """The path of an empty store of this test's own."""
    copy = tmp_path / "aegis.db"
    shutil.copyfile(template, copy)
    return copy


@pytest.fixture
def open_store(path: Path) -> Iterator[OpenStore]:
    """Opens this test's store, as often as wanted; `process` durability unless said otherwise, since tests need no fsync."""
    opened = []

    def open_one(target: str | Path = path, **options: Any) -> EventStore:
        store = EventStore.open(target, **{"durability": "process", **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> EventStore:
    """An open, empty store."""
    return open_store()


@pytest.fixture
def shell(path: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection to this test's store, as a person with the sqlite3 shell has it: no pragmas, autocommit."""
    connection = driver.dbapi.connect(str(path), isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator["Postgres"]:
    """A PostgreSQL server of this run."""
    from tests.postgres.server import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: "Postgres") -> str:
    """The URL of an empty store on PostgreSQL."""
    return postgres.emptied()
