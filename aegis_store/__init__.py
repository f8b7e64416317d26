"""Aegis Store: the sessions and events of agent platforms in one SQLite file, bounded by retention policies.

Everything public is here. Names are resolved when they are first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aegis_store.activity import EventRate as EventRate
    from aegis_store.activity import EventSample as EventSample
    from aegis_store.activity import PayloadSizes as PayloadSizes
    from aegis_store.activity import Share as Share
    from aegis_store.aio import AsyncEventStore as AsyncEventStore
    from aegis_store.backup import BackupReport as BackupReport
    from aegis_store.copying.run import CopyReport as CopyReport
    from aegis_store.doctor import DoctorReport as DoctorReport
    from aegis_store.doctor import Finding as Finding
    from aegis_store.errors import (
        AegisStoreError as AegisStoreError,
    )
    from aegis_store.errors import (
        CursorAhead as CursorAhead,
    )
    from aegis_store.errors import (
        EventIdConflict as EventIdConflict,
    )
    from aegis_store.errors import (
        EventsTruncated as EventsTruncated,
    )
    from aegis_store.errors import (
        EventTooLarge as EventTooLarge,
    )
    from aegis_store.errors import (
        FileUnavailable as FileUnavailable,
    )
    from aegis_store.errors import (
        ImportRejected as ImportRejected,
    )
    from aegis_store.errors import (
        InvalidEvent as InvalidEvent,
    )
    from aegis_store.errors import (
        InvalidInput as InvalidInput,
    )
    from aegis_store.errors import (
        InvalidPolicy as InvalidPolicy,
    )
    from aegis_store.errors import (
        InvalidSession as InvalidSession,
    )
    from aegis_store.errors import (
        NotAnAegisStore as NotAnAegisStore,
    )
    from aegis_store.errors import (
        OutOfScope as OutOfScope,
    )
    from aegis_store.errors import (
        ReadOnlyStore as ReadOnlyStore,
    )
    from aegis_store.errors import (
        RedactionFailed as RedactionFailed,
    )
    from aegis_store.errors import (
        SchemaMismatch as SchemaMismatch,
    )
    from aegis_store.errors import (
        SequenceConflict as SequenceConflict,
    )
    from aegis_store.errors import (
        SessionExists as SessionExists,
    )
    from aegis_store.errors import (
        SessionNotFound as SessionNotFound,
    )
    from aegis_store.errors import (
        StoreBusy as StoreBusy,
    )
    from aegis_store.errors import (
        StoreClosed as StoreClosed,
    )
    from aegis_store.errors import (
        StoreCorrupt as StoreCorrupt,
    )
    from aegis_store.errors import (
        StoreFull as StoreFull,
    )
    from aegis_store.errors import (
        StoreUnavailable as StoreUnavailable,
    )
    from aegis_store.events import (
        UNCHANGED as UNCHANGED,
    )
    from aegis_store.events import (
        UNLIMITED as UNLIMITED,
    )
    from aegis_store.events import (
        Event as Event,
    )
    from aegis_store.events import (
        EventsMissed as EventsMissed,
    )
    from aegis_store.events import (
        Health as Health,
    )
    from aegis_store.events import (
        Histogram as Histogram,
    )
    from aegis_store.events import (
        NewEvent as NewEvent,
    )
    from aegis_store.events import (
        Page as Page,
    )
    from aegis_store.events import (
        Session as Session,
    )
    from aegis_store.events import (
        SessionPage as SessionPage,
    )
    from aegis_store.events import (
        Status as Status,
    )
    from aegis_store.events import (
        StorePage as StorePage,
    )
    from aegis_store.events import (
        StoreStats as StoreStats,
    )
    from aegis_store.overview import SessionOverview as SessionOverview
    from aegis_store.overview import StoreOverview as StoreOverview
    from aegis_store.retention.compact import CompactReport as CompactReport
    from aegis_store.retention.limits import PolicyLoss as PolicyLoss
    from aegis_store.retention.plan import BudgetPlan as BudgetPlan
    from aegis_store.retention.plan import PrunePlan as PrunePlan
    from aegis_store.retention.plan import Truncation as Truncation
    from aegis_store.retention.policy import RetentionPolicy as RetentionPolicy
    from aegis_store.retention.prune import PruneReport as PruneReport
    from aegis_store.retention.reclaim import ReclaimReport as ReclaimReport
    from aegis_store.retention.runs import PruneRun as PruneRun
    from aegis_store.store import EventStore as EventStore
    from aegis_store.store.scoped import ScopedStore as ScopedStore
    from aegis_store.transfer.aegis_import import ImportReport as ImportReport
    from aegis_store.transfer.bring_lines import LinesReport as LinesReport
    from aegis_store.transfer.export import ExportReport as ExportReport
    from aegis_store.transfer.standing import Refusal as Refusal
    from aegis_store.verify.report import Problem as Problem
    from aegis_store.verify.report import VerifyReport as VerifyReport

_ROOMS = {
    "aegis_store.activity": "EventRate EventSample PayloadSizes Share",
    "aegis_store.aio": "AsyncEventStore",
    "aegis_store.backup": "BackupReport",
    "aegis_store.copying.run": "CopyReport",
    "aegis_store.doctor": "DoctorReport Finding",
    "aegis_store.errors": (
        "AegisStoreError CursorAhead EventIdConflict EventsTruncated EventTooLarge FileUnavailable ImportRejected InvalidEvent "
        "InvalidInput InvalidPolicy InvalidSession NotAnAegisStore OutOfScope ReadOnlyStore RedactionFailed SchemaMismatch "
        "SequenceConflict SessionExists SessionNotFound StoreBusy StoreClosed StoreCorrupt StoreFull StoreUnavailable"
    ),
    "aegis_store.events": (
        "UNCHANGED UNLIMITED Event EventsMissed Health Histogram NewEvent Page Session SessionPage Status StorePage StoreStats"
    ),
    "aegis_store.overview": "SessionOverview StoreOverview",
    "aegis_store.retention.compact": "CompactReport",
    "aegis_store.retention.limits": "PolicyLoss",
    "aegis_store.retention.plan": "BudgetPlan PrunePlan Truncation",
    "aegis_store.retention.policy": "RetentionPolicy",
    "aegis_store.retention.prune": "PruneReport",
    "aegis_store.retention.reclaim": "ReclaimReport",
    "aegis_store.retention.runs": "PruneRun",
    "aegis_store.store": "EventStore",
    "aegis_store.store.scoped": "ScopedStore",
    "aegis_store.transfer.aegis_import": "ImportReport",
    "aegis_store.transfer.bring_lines": "LinesReport",
    "aegis_store.transfer.export": "ExportReport",
    "aegis_store.transfer.standing": "Refusal",
    "aegis_store.verify.report": "Problem VerifyReport",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_ROOM_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
