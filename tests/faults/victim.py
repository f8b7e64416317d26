"""The process that the faults strike: it tries steps of the script one after the other, each in a directory of its own."""

import logging
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from aegis_store import AegisStoreError, EventStore
from tests.faults.injection import Fault, Faults
from tests.faults.script import QUIET, SCRIPT, Scene, Step
from tests.faults.shortage import Shortage, short_of


@dataclass(frozen=True, slots=True)
class Task:
    """Try that step of the script there, with a fault, a shortage, or neither."""

    step: int
    directory: Path
    fault: Fault | Shortage | None


@dataclass(frozen=True, slots=True)
class Tried:
    """What the caller of the step was told. `error`: the name of its class; `stray`: it is not of this package, and whence."""

    error: str | None
    said: str
    stray: str | None
    fired: int
    calls: dict[str, int]
    acknowledged: frozenset[str]


def serve(line: Connection) -> None:
    """Until `None` comes: try a task and tell it; when all has been looked at, go on without faults and tell what was wrong."""
    logging.getLogger("aegis_store").addHandler(logging.NullHandler())
    faults = Faults()
    while (task := line.recv()) is not None:
        step = SCRIPT[task.step]
        scene = step.scene(task.directory)
        tried = _try(step, scene, faults, task.fault)
        line.send(tried)
        line.recv()
        line.send(_problem_after(step, scene, again=tried.error is not None))


def _try(step: Step, scene: Scene, faults: Faults, fault: Fault | Shortage | None) -> Tried:
    met: Exception | None = None
    with short_of(fault) if isinstance(fault, Shortage) else nullcontext():
        faults.arm(fault if isinstance(fault, Fault) else None)
        try:
            step.act(scene)
        except Exception as error:  # noqa: BLE001 - it is reported
            met = error
    fired, calls = faults.disarm()
    stray = None if met is None or isinstance(met, AegisStoreError) else "".join(traceback.format_exception(met))
    return Tried(
        error=None if met is None else type(met).__name__,
        said=str(met),
        stray=stray,
        fired=fired if isinstance(fault, Fault) else int(met is not None),
        calls=calls,
        acknowledged=frozenset(scene.acknowledged),
    )


def _problem_after(step: Step, scene: Scene, *, again: bool) -> str | None:
    """The rest, without faults, with the same store object: the step again if it failed, then what everybody does."""
    try:
        if again:
            step.act(scene)
        if scene.store is None:
            scene.store = EventStore.open(scene.path, **QUIET)
        _work_on(scene.store)
    except Exception:  # noqa: BLE001 - it is reported
        return traceback.format_exc()
    finally:
        if scene.store is not None:
            scene.store.close()
    return None


def _work_on(store: EventStore) -> None:
    store.prune()
    store.ensure_session("afterwards")
    for session in store.list_sessions().sessions:
        event = store.append(session.session_id, "afterwards", {"n": session.last_seq})
        assert event.seq == session.last_seq + 1, f"{session.session_id}: {event.seq} follows {session.last_seq}"
        assert store.read(session.session_id, after_seq=session.last_seq).events == [event]
