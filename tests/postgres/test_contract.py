"""The contract on PostgreSQL: the tests of appends, reads, sessions and more that ask nothing of SQLite itself, once more."""

import inspect
from collections.abc import Callable
from types import ModuleType

import pytest

from aegis_store.postgres.watcher import ServerWatcher
from tests import test_append, test_follow, test_health, test_overview, test_read, test_sessions, test_verify
from tests.test_follow import NEVER_S
from tests.test_follow import only_bells as only_bells
from tests.test_health import failed_prune as failed_prune
from tests.test_read import mixed as mixed
from tests.test_read import woven as woven
from tests.test_verify import filled as filled

_ASKS_SQLITE = ("statements_of", "query_plans", "removals(store", "vm_steps", "steps_of", "._db", ".maintain_every")
_ASKS_A_FILE = ("path.", "(path)", "held(", "compact(", "Spool", "run(", "crowded")
_FIXTURES_OF_SQLITE = {"shell", "path", "tmp_path", "large_store", "large", "monkeypatch", "template"}


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only commits of this process ring."""
    monkeypatch.setattr(ServerWatcher, "_look_out", lambda watcher: watcher._stopped.wait(NEVER_S))


def contract(module: ModuleType, *, files: bool = False, urls: bool = False) -> dict[str, Callable[..., None]]:
    """Its tests; with `files`, those too that write files beside the store, or have a function fail.

    With `urls` those too that do no more with the store's `path` than open it: they find a URL there.
    """
    asking = _FIXTURES_OF_SQLITE - ({"tmp_path", "monkeypatch"} if files else set()) - ({"path"} if urls else set())
    found: dict[str, Callable[..., None]] = {}
    for name, test in vars(module).items():
        if not name.startswith("test_") or not inspect.isfunction(test):
            continue
        source = inspect.getsource(test)
        given = inspect.signature(test).parameters.keys()
        asks_sqlite = not asking.isdisjoint(given) or (files and given.isdisjoint({"store", "open_store"}))
        words = (*_ASKS_SQLITE, *(_ASKS_A_FILE if urls else ()))
        if not asks_sqlite and not any(word in source for word in words):
            found[f"{name}__of_{module.__name__.rpartition('.')[2]}"] = test
    return found


for _module in (test_append, test_follow, test_health, test_overview, test_read, test_sessions, test_verify):
    globals().update(contract(_module))


def test_most_of_the_contract_is_here() -> None:
    """So that no change to a fixture's name takes tests away unseen."""
    assert len([name for name in globals() if name.startswith("test_")]) > 120
