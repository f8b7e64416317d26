"""The script that meets the faults: it goes through the public surface, and each of its steps may be tried again.

The steps follow each other in one directory, each begins where the one before it ended.
"""

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from aegis_store import EventStore, InvalidInput, NewEvent, RetentionPolicy, SessionNotFound

FROZEN: Final = Path(__file__).parents[1] / "migrations" / "frozen" / "0001.db.gz"
QUIET: Final[dict[str, Any]] = {"prune_on_open": False, "maintain_every": None, "busy_timeout_ms": 2000}


@dataclass(slots=True)
class Scene:
    """Where a step is tried. `acknowledged`: the event ids that it was told are stored."""

    directory: Path
    file: str = "aegis.db"
    store: EventStore | None = None
    acknowledged: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        return self.directory / self.file

    @property
    def opened(self) -> EventStore:
        assert self.store is not None
        return self.store

    def append(self, session_id: str, event_id: str, payload: Any = None, **more: Any) -> None:
        self.opened.append(session_id, "note", payload, event_id=event_id, **more)
        self.acknowledged.add(event_id)

    def append_many(self, session_id: str, count: int) -> None:
        """So many events, whose ids make it harmless to come again."""
        ids = [f"{session_id}{number}" for number in range(count)]
        self.opened.append_many(session_id, [NewEvent(type="note", payload=name * 5, event_id=name) for name in ids])
        self.acknowledged.update(ids)


@dataclass(frozen=True, slots=True)
class Step:
    """One act. Failing, it has changed nothing; `in_slices`: it has done a part, as its docstring says."""

    name: str
    act: Callable[[Scene], object]
    in_slices: bool = False
    opens: bool = False
    """The act opens the store itself, or works on one that nobody has open."""
    looks_again: bool = False
    """When it has happened, it looks at the store once more: if only that fails, it has happened."""
    puts_off: bool = False
    """A part of it may be put off without a word to the caller."""
    was_killed: bool = False
    """The process that had the store before was killed: its log is still there."""
    starts_threads: bool = False
    """It starts threads, for which CPython may wait for ever where memory is short (python/cpython#140746)."""
    prepares: bool = False
    """Made for the steps after it; no fault is tried in it."""
    file: str = "aegis.db"
    durability: Literal["power", "process"] = "power"

    def scene(self, directory: Path) -> Scene:
        """Where it is to be tried: the store is open if the step asks for that."""
        scene = Scene(directory, self.file)
        if not self.opens:
            scene.store = EventStore.open(scene.path, durability=self.durability, **QUIET)
            scene.store.set_retention_policy(scene.store.retention_policy())  # the store's own thread begins with a write
        return scene


def open_store(scene: Scene, **options: Any) -> None:
    scene.store = EventStore.open(scene.path, **(QUIET | options))


def open_and_prune(scene: Scene) -> None:
    open_store(scene, prune_on_open=True)


def fill_and_end(scene: Scene) -> None:
    """Two sessions that have ended, so that the next prune has work."""
    for name in ("ended", "over"):
        scene.opened.ensure_session(name)
        scene.append_many(name, 200)
        scene.opened.set_status(name, "completed")


def append_from_threads(scene: Scene) -> None:
    """Appends that share their commits; each is told its own outcome, the first error is raised."""
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(scene.append, f"thread{number}", f"thread{number}", "x" * 1000) for number in range(8)]
    for future in futures:
        future.result()


def make_sessions(scene: Scene) -> None:
    """For the threads one each, and two that have many events."""
    for number in range(8):
        scene.opened.ensure_session(f"thread{number}")
    for name, count in (("long", 450), ("plain", 400)):
        scene.opened.ensure_session(name)
        scene.append_many(name, count)


def read_all_ways(scene: Scene) -> None:
    store = scene.opened
    page = store.read("s", limit=1000)
    assert [event.seq for event in page.events] == list(range(page.first_seq, page.last_seq + 1))
    assert len(store.read("long", limit=1000, types=["note"]).events) == 200
    assert len(store.read_all(limit=1000, on_gap="skip")) > 300
    assert list(store.follow("s", after=page.last_seq - 2, timeout=0.001)) == page.events[-2:]
    assert store.get_session("s").last_seq == page.last_seq
    assert {session.session_id for session in store.list_sessions().sessions} >= {"s", "long"}
    assert store.stats().events > 700
    assert store.health().budget_used is None
    assert store.plan_prune(policy=store.retention_policy()).events == 400
    assert store.prune_history() == []


def delete(scene: Scene) -> None:
    try:
        scene.opened.delete_session("long")
    except SessionNotFound:
        scene.opened.prune()  # it was gone at once for everyone, and the next prune finishes the rest


def export(scene: Scene, name: str) -> None:
    try:
        scene.opened.export(scene.directory / name)
    except InvalidInput:  # the draft, or the file, of a try that could not remove it: it is named, to be removed by hand
        for left in (f"{name}.tmp", name):
            with suppress(FileNotFoundError):
                (scene.directory / left).unlink()
        scene.opened.export(scene.directory / name)


def write_state(scene: Scene) -> None:
    """A state file of the orchestrator."""
    moment, scope = "2026-01-01T00:00:00.000Z", {"tenantId": "acme", "ownerKeyId": "ci"}
    sessions = [
        {"id": name, **scope, "status": "running", "createdAt": 1_760_000_000_000, "updatedAt": 1_760_000_000_000}
        for name in ("aegis1", "aegis2")
    ]
    events = [
        {"sessionId": session["id"], **scope, "eventSeq": seq, "eventId": f"{session['id']}-{seq}", "eventType": "note"}
        | {"occurredAt": moment, "ingestedAt": moment, "payload": {"text": "x" * 200}}
        for session in sessions
        for seq in range(1, 151)
    ]
    state = {"version": 1, "sessions": sessions, "events": events}
    (scene.directory / "state.json").write_text(json.dumps(state))


def lower_the_cap(scene: Scene) -> None:
    scene.opened.set_retention_policy(RetentionPolicy(max_events=150))


def put_old_store(scene: Scene) -> None:
    (scene.directory / "old.db").write_bytes(gzip.decompress(FROZEN.read_bytes()))


def append_and_close(scene: Scene) -> None:
    try:
        with EventStore.open(scene.path, **QUIET) as scene.store:
            scene.append_many("s", 10)
            scene.append("s", "last")
    finally:
        scene.store = None


SCRIPT: Final = (
    Step("create", open_store, opens=True, looks_again=True),
    Step("create_session", lambda scene: scene.opened.create_session("s", metadata={"text": "x" * 9000}, max_events=27)),
    Step("ensure_session", lambda scene: scene.opened.ensure_session("t")),
    Step("append", lambda scene: scene.append("s", "one", "x" * 30_000)),
    Step("append, process", lambda scene: scene.append("s", "two", "x" * 30_000), durability="process"),
    Step("append_many", lambda scene: scene.append_many("s", 25)),
    Step("append at the cap", lambda scene: scene.append("s", "three", [1], expected_seq=27)),
    Step("set_status", lambda scene: scene.opened.set_status("s", "paused")),
    Step("update_session", lambda scene: scene.opened.update_session("s", metadata={"text": "y" * 20_000}, hold=True)),
    Step("sessions", make_sessions, prepares=True),
    Step("append from threads", append_from_threads, in_slices=True, starts_threads=True),
    Step("lower a cap", lambda scene: scene.opened.update_session("long", max_events=200), in_slices=True),
    Step("events that end", fill_and_end, prepares=True),
    Step("read", read_all_ways, starts_threads=True),
    Step("export", lambda scene: export(scene, "all.jsonl.gz")),
    Step("export, plain", lambda scene: export(scene, "all.jsonl")),
    Step("prune", lambda scene: scene.opened.prune(archive_dir=scene.directory / "archive"), in_slices=True),
    Step("lower the policy's cap", lower_the_cap, in_slices=True),
    Step("more events that end", fill_and_end, prepares=True),
    Step("open", open_and_prune, in_slices=True, opens=True, puts_off=True, starts_threads=True),
    Step("delete_session", delete, in_slices=True),
    Step("reclaim", lambda scene: scene.opened.reclaim(check=True)),
    Step("create the other", open_store, opens=True, prepares=True, file="other.db"),
    Step("import", lambda scene: scene.opened.import_lines(scene.directory / "all.jsonl.gz"), in_slices=True, file="other.db"),
    Step("write state", write_state, prepares=True),
    Step("import_aegis", lambda scene: scene.opened.import_aegis(scene.directory / "state.json"), in_slices=True),
    Step("compact", lambda scene: EventStore.compact(scene.path), opens=True),
    Step("put old store", put_old_store, opens=True, prepares=True),
    Step("upgrade", lambda scene: EventStore.upgrade(scene.path), opens=True, looks_again=True, file="old.db"),
    Step("open after a kill", open_store, opens=True, was_killed=True),
    Step("append and close", append_and_close, in_slices=True, opens=True, starts_threads=True),
)
