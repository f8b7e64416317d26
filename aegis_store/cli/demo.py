"""The command `demo`: the load that ended the old design, on this one."""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from aegis_store.cli.options import AsJson, named_place

if TYPE_CHECKING:
    from aegis_store.connections import Durability
    from aegis_store.events import Json, StoreStats
    from aegis_store.store import EventStore
    from aegis_store.transfer.aegis_file import StagedState

_BUSY_SESSIONS = 12
_EVENTS_OF_A_BUSY_SESSION = 1200  # so that a cap of 1,000 bites
_PROGRESS_STEP = 100
_MOST_DEMO_FILES = 99
_SLOW_FSYNC_US = 1200.0  # 23,000 appends at such a speed are half a minute

# Measured on the design that this replaces: its own code, the 22 MB state file, before its fix.
_OLD_DESIGN = "Old design, same load: 258 ms, 158 MB of heap an append; crashed at 4.0 GB."


class Played(NamedTuple):
    """An event for a session, however it was come by."""

    session_id: str
    type: str
    payload: "Json"


class Figures(NamedTuple):
    """What playing took; the latencies in order."""

    appends: int
    seconds: float
    latencies_us: list[float]


def demo(
    context: typer.Context,
    db: Annotated[
        str | None,
        typer.Option("--db", metavar="PATH|URL", help="The store to make. Without it aegis-demo.db here.", show_default=False),
    ] = None,
    state_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Play this state file of the orchestrator instead.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play the incident on a new store, and show what it took.

    359 sessions, 8,614 events of 2.5 KB, then more until caps bite; sessions end, and the store is opened again.

    Never touches a store that exists, nor the one that $AEGIS_STORE_URL names.

    Example: aegis-store demo
    """
    from aegis_store.bench.disk import fsync_us
    from aegis_store.cli.inspect import show_store
    from aegis_store.cli.terminal import show, show_json
    from aegis_store.store import EventStore
    from aegis_store.transfer.aegis_file import staged

    with staged(state_file) if state_file else nullcontext() as state:  # a file that cannot be read makes no store
        place = _new_store(named_place(context, db))
        disk_us = fsync_us(place.parent)
        durability: Durability = "power" if disk_us < _SLOW_FSYNC_US else "process"
        if durability == "process" and not as_json:
            show(f"This disk takes {disk_us / 1000:.1f} ms for an fsync: at process durability, to end in time.")
        with EventStore.open(place, durability=durability, maintain_every=None) as store:
            figures = _play_state(store, state) if state else _play_incident(store)
            full = store.stats()
    started = time.perf_counter()
    with EventStore.open(place, durability=durability, maintain_every=None) as store:  # the startup job runs here
        results = _results(durability, figures, full, store.stats(), time.perf_counter() - started)
        results["incident"] = state_file is None
        if as_json:
            show_json({"store": str(place), **results})
        else:
            show_store(store, str(place))
            _show(place, results)


def _new_store(named: str | None) -> Path:
    """A store that this call has made, and no other process beside it."""
    from aegis_store.server import Server
    from aegis_store.store import EventStore
    from aegis_store.target import Target

    if named is not None:
        if Server.of(named) is not None:
            raise typer.BadParameter("the demo plays on a file of its own: name a path", param_hint="--db")
        if Target.of(named).path.exists() or EventStore.upgrade(named)[0] is not None:
            problem = f"{named} exists, and the demo only plays on a new store: name another file"
            raise typer.BadParameter(problem, param_hint="--db")
        return Target.of(named).path if "://" in named else Path(named)
    for number in range(1, _MOST_DEMO_FILES + 1):
        place = Path("aegis-demo.db" if number == 1 else f"aegis-demo-{number}.db")
        if not place.exists() and EventStore.upgrade(place)[0] is None:
            return place
    raise typer.BadParameter(f"there are {_MOST_DEMO_FILES} demo files here: remove some, or name a file", param_hint="--db")


def _play_incident(store: "EventStore") -> Figures:
    from itertools import chain

    from aegis_store import workload
    from aegis_store.cli.terminal import progress

    with progress() as bar:
        total = workload.EVENTS + _BUSY_SESSIONS * _EVENTS_OF_A_BUSY_SESSION
        task = bar.add_task("Playing the incident", total=total)
        ids = [
            store.create_session(tenant=f"tenant-{number % 3}", metadata={"number": number}).session_id
            for number in range(workload.SESSIONS)
        ]
        load = chain(workload.incident(), workload.aftermath(_BUSY_SESSIONS, _EVENTS_OF_A_BUSY_SESSION))
        played = (Played(ids[event.session], event.type, event.payload) for event in load)
        figures = _play(store, played, lambda: bar.advance(task, _PROGRESS_STEP))
        for session_id, status in zip(ids, workload.statuses(), strict=True):
            store.set_status(session_id, status)
    return figures


def _play_state(store: "EventStore", state: "StagedState") -> Figures:
    from aegis_store.cli.terminal import progress

    def load() -> Iterator[Played]:
        for record, _ in state.sessions():
            session_id = record.get("id")
            store.ensure_session(session_id, tenant=record.get("tenantId"), owner=record.get("ownerKeyId"))
            for event in state.events(session_id):
                yield Played(session_id, event.get("eventType"), event.get("payload"))
            store.set_status(session_id, record.get("status"))

    with progress() as bar:
        task = bar.add_task("Playing the state file", total=state.event_count())
        return _play(store, load(), lambda: bar.advance(task, _PROGRESS_STEP))


def _play(store: "EventStore", load: Iterable[Played], on_step: Callable[[], None]) -> Figures:
    """Append one by one, as the orchestrator's hooks do, and take the time of each."""
    clock = time.perf_counter
    latencies_us: list[float] = []
    began = clock()
    for number, event in enumerate(load, 1):
        started = clock()
        store.append(event.session_id, event.type, event.payload)
        latencies_us.append((clock() - started) * 1e6)
        if number % _PROGRESS_STEP == 0:
            on_step()
    return Figures(len(latencies_us), clock() - began, sorted(latencies_us))


def _results(durability: str, figures: Figures, full: "StoreStats", after: "StoreStats", reopened_s: float) -> dict[str, Any]:
    from aegis_store.bench.measure import percentile

    latencies_us = figures.latencies_us or [0.0]
    return {
        "durability": durability,
        "appends": figures.appends,
        "appends_per_second": int(figures.appends / figures.seconds),
        "p50_us": round(percentile(latencies_us, 0.5)),
        "p99_us": round(percentile(latencies_us, 0.99)),
        "peak_memory_bytes": _peak_memory_bytes(),
        "file_bytes": full.file_bytes,
        "removed_by_cap": full.removed_events,
        "removed_at_start": after.removed_events - full.removed_events,
        "reopened_ms": round(reopened_s * 1000),
    }


def _peak_memory_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _show(place: Path, results: dict[str, Any]) -> None:
    from aegis_store.cli.terminal import count, plural, show, show_facts, size

    memory = results["peak_memory_bytes"]
    cap, start = plural(results["removed_by_cap"], "event"), plural(results["removed_at_start"], "event")
    facts = {
        "appends": f"{count(results['appends'])}, one by one, each its own commit at {results['durability']} durability",
        "speed": f"{count(results['appends_per_second'])} appends/s",
        "latency": f"p50 {results['p50_us']:,} µs, p99 {results['p99_us']:,} µs",
        "peak memory": size(memory) if memory else "not known here",
        "file": size(results["file_bytes"]),
        "the caps": f"removed {cap}, oldest first, as they bit",
        "the restart": f"removed {start} of ended sessions, in {results['reopened_ms']:,} ms",
    }
    show_facts(facts, title="What it took")
    show(
        *(["", _OLD_DESIGN] if results["incident"] else []),
        "",
        f"Look around: aegis-store inspect --db {shlex.quote(str(place))}",
    )
