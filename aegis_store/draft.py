"""A file that appears under its name whole, synced and looked at, or not at all.

It is written beside its name, as `NAME.tmp`, and linked into place at the end. A link never replaces a file, so of two
processes that write the same name at once one wins, and the other is told.

Who writes a draft holds it, by a lock that ends with him. So what the killed have left can be told from what others write, and
is removed by the next one who may.
"""

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from aegis_store.errors import FileUnavailable, InvalidInput, StoreFull, shown
from aegis_store.settings import ORPHAN_AGE_S

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WHAT_TO_DO: Final = {
    errno.ENOENT: "its directory does not exist: make it, or check the path",
    errno.EEXIST: "a file stands there: name a directory",
    errno.ENOTDIR: "a part of the path is a file: name a directory there",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission denied: write where this user may"),
    errno.EROFS: "the file system is read-only: write elsewhere",
}


def path_of(given: Any) -> Path:
    """The path that a caller gave for a file. `InvalidInput` if it is none."""
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidInput(f"a file or directory is named by a path, not {shown(name)}")
    return Path(name)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Inside, errors of the file system become `StoreFull` and `FileUnavailable`, which name `path`."""
    try:
        yield
    except UnicodeEncodeError:
        raise InvalidInput(f"{shown(str(path))} cannot be the name of a file: leave out the lone surrogate") from None
    except OSError as error:
        said = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(store=str(path), detail=said) from None
        todo = _WHAT_TO_DO.get(error.errno or 0, f"{said}: check the disk and the permissions")
        raise FileUnavailable(file=str(path), detail=todo) from None


class Draft:
    """A file being written, mode 0600 (less where the umask allows less). End it with `publish` or with `discard`.

    Every method raises `StoreFull` when the disk or a quota is full, `FileUnavailable` when the file system refuses.
    """

    def __init__(self, final: Path, *, path: Path | None = None) -> None:
        """Begin, in `NAME.tmp` or at `path`, which then has its mode whatever the umask.

        Raises `InvalidInput` if the name is taken, by a file or by the draft of another writer.
        """
        self.final = final
        self.size_bytes = 0
        self._descriptor = -1
        self._stands = False
        with file_errors(final):
            if os.path.lexists(final):
                raise _taken(final)
            self.path = final.with_name(f"{final.name}.tmp") if path is None else path
            try:
                self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
            except FileExistsError:
                raise InvalidInput(
                    f"{shown(str(self.path))} stands already: another process is writing it, or has died; if so, remove it"
                ) from None
            self._stands = True
            hold(self._descriptor)
            if path is not None:
                os.chmod(self.path, 0o600)  # whatever the umask: SQLite opens it again, by its name

    def write(self, content: bytes) -> None:
        """Write on. Raises as the class says; then discard the draft."""
        with file_errors(self.final):
            rest = memoryview(content)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[os.write(self._descriptor, rest) :]
            self.size_bytes += len(content)

    def reopened(self) -> io.BufferedReader:
        """What was written, synced, from its start: from the disk where the system can be told to forget its cache."""
        with file_errors(self.final):
            os.fsync(self._descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return os.fdopen(os.dup(self._descriptor), "rb")

    def sync(self) -> None:
        """Bring what was written to the disk, by whomever."""
        with file_errors(self.final):
            os.fsync(self._descriptor)

    def publish(self) -> None:
        """Give the file its name, durably. Raises `InvalidInput` if the name was taken meanwhile."""
        with file_errors(self.final):
            os.fsync(self._descriptor)
            # Closed first: as soon as it has its name it may be open as a store here, which would lose its locks.
            os.utime(self.path)  # so that nobody takes it for an orphan meanwhile
            self._close()
            self._link()
            try:
                self.path.unlink(missing_ok=True)
                self._stands = False
                sync_directory(self.final.parent)
            except BaseException:
                # It might be gone after a power cut, so nobody may rely on it.
                self.final.unlink(missing_ok=True)
                raise

    def discard(self) -> None:
        """Remove what was written. After `publish`: nothing."""
        # The error that led here is the one to be told; a draft that cannot be removed is refused by name next time.
        with suppress(OSError):
            self._close()
        if self._stands:  # else the name may be that of another writer's draft by now
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self._stands = False

    def _link(self) -> None:
        try:
            os.link(self.path, self.final)
        except FileExistsError:
            raise _taken(self.final) from None
        except OSError:
            # A file system without links. Between the look and the renaming another file could come under that name and
            # be replaced: Python offers no way to rename without replacing on every system.
            if os.path.lexists(self.final):
                raise _taken(self.final) from None
            os.rename(self.path, self.final)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def hold(descriptor: int) -> None:
    """Show others, for as long as the file is open there, that somebody writes it."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks, where nothing is ever taken for an orphan
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_orphan(draft: str | os.PathLike[str]) -> bool:
    """Whether the file was left behind: untouched for ten minutes, and nobody holds it. Where that cannot be known: no."""
    try:
        found = os.lstat(draft)
        if not stat.S_ISREG(found.st_mode) or found.st_mtime > time.time() - ORPHAN_AGE_S:
            return False
        # One that has its name as well is needed no more, and may be a store, whose locks it would cost to open and close it
        # here. Windows removes no file that somebody has open.
        if found.st_nlink > 1 or fcntl is None:
            return True
        descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except OSError:  # gone, held, another user's, or on a file system without locks
        return False
    return True


def _taken(final: Path) -> InvalidInput:
    return InvalidInput(
        f"{shown(str(final))} stands already, and no file is overwritten: choose another name, or remove it first"
    )


def make_directories(directory: Path) -> None:
    """Make the directory and those above it that are missing, mode 0700, such that they survive a power cut.

    Syncing a file and its directory does not do that: the name of the directory stands in the one above.
    """
    if directory.is_dir():
        return
    if not directory.parent.exists():
        make_directories(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        sync_directory(directory.parent)
    except OSError:
        with suppress(OSError):
            directory.rmdir()  # or the next time it would be taken for one that was synced
        raise


def sync_directory(directory: Path) -> None:
    """Have the names in the directory survive a power cut."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no directories, and syncs their entries by itself; and some may be written to, but not read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
