"""What could not be recorded waits beside the store, in the directory `NAME-spool`: a file for each event.

A file appears under its name whole and synced, or not at all, and goes when its event is committed. So nothing is torn, who
spools waits for nobody, and whoever is killed loses nothing that was said to be kept. The names begin with the time at which
the event was received: sorted, they are in order.

Where nothing can be written beside the store (the disk is full, no permission) the same is done in the user's state directory,
under a name made of the store's path; both places are looked at. A store on a server has that one alone, under a name made of
its URL without the password. What can never come in (it is no JSON, too large, of another tenant) is moved to the directory
`rejected` in there, with the reason, and stays until somebody looks at it.

Files are moved and removed there, so a place that is a link, or not this user's alone, is left as it is: it may have been put
there by whoever wants that to happen elsewhere, or wants events of his own to come in.
"""

import base64
import binascii
import errno
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from platformdirs import user_state_path

from aegis_store.any_database import Place, place_at
from aegis_store.draft import hold, is_orphan, make_directories, sync_directory
from aegis_store.errors import AegisStoreError, EventIdConflict, InvalidEvent, InvalidSession, SessionExists
from aegis_store.events import to_us
from aegis_store.file_lock import FileLock
from aegis_store.settings import MAX_INPUT_BYTES
from aegis_store.target import Target

REFUSED: Final = (InvalidEvent, InvalidSession, SessionExists, EventIdConflict)
"""What a store raises for an event that it will never take. Anything else may pass: such an event waits."""

_VERSION: Final = 1
_SUFFIX: Final = ".json"

_LONGEST_FILE_BYTES: Final = 6 * MAX_INPUT_BYTES + 64 * 1024  # a control character is six in JSON

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a hook sent, as it came, and all that it takes to record it later. `event_id` makes that harmless to repeat."""

    content: bytes = field(repr=False)
    event_id: str
    received_at: datetime
    session_field: str
    type_field: str
    tenant: str
    owner: str
    reason: str | None = None
    """Why it was not recorded at once, or not at all."""

    def to_text(self) -> str:
        """One JSON document in ASCII. Content that is no UTF-8 stands in it as base64."""
        fields = {"version": _VERSION, **asdict(self), "received_at": self.received_at.isoformat()}
        try:
            fields["content"] = self.content.decode()
        except UnicodeDecodeError:
            fields["content_base64"] = base64.b64encode(fields.pop("content")).decode()
        return json.dumps(fields)

    @classmethod
    def from_text(cls, text: str) -> "Received":
        """What `to_text` wrote. `ValueError` if it is something else."""
        try:
            fields = json.loads(text)
            if fields.pop("version") != _VERSION:
                raise ValueError("it was written by another version")
            encoded = fields.pop("content_base64", None)
            content = fields.pop("content").encode() if encoded is None else base64.b64decode(encoded)
            received_at = datetime.fromisoformat(fields.pop("received_at"))
            to_us(received_at)
            if not all(isinstance(fields[name], str) for name in ("session_field", "type_field")):
                raise TypeError("a name that is no text")
            return cls(content=content, received_at=received_at, **fields)
        except (KeyError, TypeError, AttributeError, binascii.Error, RecursionError, UnicodeError) as error:
            raise ValueError(f"it is not what was written: {type(error).__name__} {error}") from None


class Kept(NamedTuple):
    """What became of an event that was not recorded.

    `file` holds it, and it waits there, or is `rejected` for good. None: it could not be kept anywhere, `problem` says why.
    """

    file: Path | None
    rejected: bool
    reason: str
    problem: str | None = None


class Spool:
    """The files of the events that wait for one store. Safe for threads and processes."""

    def __init__(self, target: Place) -> None:
        elsewhere = _place_elsewhere(target)
        # A user without a home has a state directory wherever he is, which nobody would find again.
        beside = (target.side_file("-spool"),) if isinstance(target, Target) else ()
        self.places = (*beside, *((elsewhere,) if elsewhere.is_absolute() else ()))

    def add(self, received: Received, *, rejected: bool = False) -> Path:
        """Keep it, durably: beside the store, else in the state directory. Raises `OSError` when neither can be written."""
        problem: OSError | None = None
        for place in self.places:
            try:
                return _put(_made(place) / "rejected" if rejected else place, _name(received), received.to_text())
            except OSError as error:
                problem = problem or error
        raise problem or OSError("there is no place for it")

    def waiting(self) -> list[Path]:
        """The files of those that wait, in the order in which they were received. Not those that another user keeps."""
        return sorted((file for place in self._ours() for file in _files(place)), key=lambda file: file.name)

    def rejected(self) -> list[Path]:
        """The files of those that can never come in, likewise."""
        return sorted((file for place in self._ours() for file in _files(place / "rejected")), key=lambda file: file.name)

    def of_another_user(self) -> Path | None:
        """A place that is not this user's alone, or whose files he may not read or remove, if there is one."""
        allowed = [place for place in self._ours() if os.access(place, os.R_OK | os.W_OK | os.X_OK)]
        return next((place for place in self.places if place.is_dir() and place not in allowed), None)

    def lock(self) -> FileLock:
        """For who brings them in: two at once would do everything twice, if harmlessly. Close it."""
        place = next((place for place in self._ours() if place.is_dir()), None)
        return FileLock(place and place / "lock", mode=0o600)

    def remove(self, files: list[Path]) -> dict[Path, OSError]:
        """Remove the files of those that were recorded, durably; those that cannot be, and why. Raises `OSError`."""
        stuck: dict[Path, OSError] = {}
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                stuck[file] = error
        for place in {file.parent for file in files}:
            sync_directory(place)
        return stuck

    def reject(self, file: Path, reason: str) -> Path:
        """Set a file aside, with the reason if it can be read. Raises `OSError`; then it stays where it is."""
        with suppress(ValueError):
            received = read(file)
            kept = _put(file.parent / "rejected", file.name, _with_reason(received, reason).to_text())
            file.unlink(missing_ok=True)
            return kept
        aside = _made(file.parent / "rejected") / file.name
        os.replace(file, aside)
        return aside

    def _ours(self) -> list[Path]:
        return [place for place in self.places if _is_ours(place)]

    def sweep(self) -> None:
        """Remove what processes left behind that were killed while they wrote, as far as it can be."""
        for place in self._ours():
            for directory in (place, place / "rejected"):
                for draft in _files(directory, ".tmp"):
                    with suppress(OSError):  # gone, or another user's: it is in nobody's way
                        if is_orphan(draft):
                            draft.unlink()


def read(file: Path) -> Received:
    """What the file holds. `ValueError` if it is damaged, `OSError` if it cannot be read."""
    if file.stat().st_size > _LONGEST_FILE_BYTES:
        raise ValueError("it is longer than an event can make it")
    return Received.from_text(file.read_bytes().decode())


def recorded_or_kept(
    place: str,
    received: Received,
    record: Callable[[Received], T],
    without_secrets: Callable[[Received], Received] | None = None,
) -> T | Kept:
    """What `record` gives; whatever it raises, Ctrl-C too, the event is kept, or the outcome says that it could not be.

    What is kept is what `without_secrets` gives, and if that raises, nothing: better lost than in clear.
    """
    if without_secrets is not None:
        try:
            received = without_secrets(received)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - as below
            told = str(error) if isinstance(error, AegisStoreError) else type(error).__name__
            return Kept(None, True, told, "it is never kept in clear")
    try:
        return record(received)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the agent that calls must not break, whatever it is
        rejected = isinstance(error, REFUSED)
        reason = str(error) if isinstance(error, AegisStoreError) else f"{type(error).__name__}: {error}".rstrip(": ")
        try:
            file = Spool(place_at(place)).add(_with_reason(received, reason), rejected=rejected)
        except Exception as problem:  # noqa: BLE001 - likewise
            return Kept(None, rejected, reason, str(problem) or type(problem).__name__)
        return Kept(file, rejected, reason)


def _with_reason(received: Received, reason: str) -> Received:
    return Received(**{name: getattr(received, name) for name in Received.__slots__ if name != "reason"}, reason=reason)


def _place_elsewhere(target: Place) -> Path:
    mark = sha256(os.fsencode(target.identity)).hexdigest()[:16]
    return user_state_path("aegis-store", appauthor=False) / "spool" / f"{target.name[:64]}-{mark}"


def _name(received: Received) -> str:
    return f"{to_us(received.received_at):020}-{received.event_id}{_SUFFIX}"


def _is_ours(directory: Path) -> bool:
    """Whether what stands there is a directory of this user alone, or nothing yet."""
    try:
        found = directory.lstat()
    except OSError:
        return True  # where it cannot be known, nothing can be done either
    if not stat.S_ISDIR(found.st_mode):
        return False
    if not hasattr(os, "geteuid"):  # Windows, whose modes say nothing
        return True
    return os.geteuid() in (0, found.st_uid) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _made(directory: Path) -> Path:
    make_directories(directory)
    if not _is_ours(directory):
        raise PermissionError(errno.EPERM, "it is a link, or not this user's alone", str(directory))
    return directory


def _files(directory: Path, suffix: str = _SUFFIX) -> list[Path]:
    if not _is_ours(directory):
        return []
    try:
        with os.scandir(directory) as entries:
            # Nothing but files of ours: to read a pipe would be to wait for ever, and what cannot be read holds up all others.
            return [
                directory / entry.name
                for entry in entries
                if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _put(directory: Path, name: str, text: str) -> Path:
    """A file that is there whole and synced, or not at all; mode 0600."""
    _made(directory)
    draft, final = directory / f"{name}.{os.getpid()}.tmp", directory / name
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600), "wb") as file:
            hold(file.fileno())
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, final)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    sync_directory(directory)
    return final
