"""A file that appears under its name whole, synced and looked at, or not at all.

It is written beside its name, as `NAME.tmp`, and linked into place at the end. A link never replaces a file, so of two
processes that write the same name at once one wins, and the other is told.

Who writes a draft holds it, by a lock that ends with him. So what the killed have left can be told from what others write, and
is removed by the next one who may.

All happens in the directory that was there at the beginning, even if its path leads elsewhere meanwhile; then the file does not
get its name.
"""

import errno
import io
import os
import stat
import sys
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

# Not on Windows, which moves no directory away in which somebody has a file open.
_NAMES_IN_OPEN_DIRECTORIES: Final = os.open in os.supports_dir_fd
_DESCRIPTORS_FOR_NAMES: Final = {os.chmod, os.utime} <= os.supports_fd

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
        self._directory: int | None = None
        self._stands = False
        with file_errors(final):
            if os.path.lexists(final):
                raise _taken(final)
            self.path = final.with_name(f"{final.name}.tmp") if path is None else path
            self._directory = _opened(final.parent)
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
            try:
                self._descriptor = os.open(self._name(self.path), flags, 0o600, dir_fd=self._directory)
            except FileExistsError:
                self._close()
                raise InvalidInput(
                    f"{shown(str(self.path))} stands already: another process is writing it, or has died; if so, remove it"
                ) from None
            except BaseException:
                self._close()
                raise
            self._stands = True
            self._found = os.fstat(self._descriptor)
            hold(self._descriptor)
            if path is not None:  # whatever the umask: SQLite opens it again, by its name
                os.chmod(self._itself(), 0o600)

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

    def check(self) -> None:
        """Raise `FileUnavailable` if another file is at `path` by now: for who has opened it by that, and not written yet."""
        self._check_at(self.path)

    def publish(self) -> None:
        """Give the file its name, durably.

        Raises `InvalidInput` if the name was taken meanwhile, `FileUnavailable` if its path leads to another directory now.
        """
        with file_errors(self.final):
            os.fsync(self._descriptor)
            os.utime(self._itself())  # so that nobody takes it for an orphan now
            # Closed first: as soon as it has its name it may be open as a store here, which would lose its locks.
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            self._link()
            try:
                self._remove(self.path)
                self._stands = False
                sync_directory(self.final.parent)
                self._check_at(self.final)
            except BaseException:
                # It might be gone after a power cut, or is where nobody looks for it, so nobody may rely on it.
                self._remove(self.final)
                raise
            self._close()

    def discard(self) -> None:
        """Remove what was written. After `publish`: nothing."""
        # The error that led here is the one to be told; a draft that cannot be removed is refused by name next time.
        if self._stands:
            with suppress(OSError):
                self._remove(self.path)
            self._stands = False
        with suppress(OSError):
            self._close()

    def _itself(self) -> int | Path:
        return self._descriptor if _DESCRIPTORS_FOR_NAMES else self.path

    def _name(self, path: Path) -> str:
        return str(path) if self._directory is None else path.name

    def _remove(self, path: Path) -> None:
        """Remove the file by that name, which may be that of another one by now."""
        with suppress(FileNotFoundError):
            found = os.stat(self._name(path), dir_fd=self._directory, follow_symlinks=False)
            if os.path.samestat(found, self._found):
                os.unlink(self._name(path), dir_fd=self._directory)

    def _check_at(self, path: Path) -> None:
        with file_errors(self.final):
            if not os.path.samestat(os.lstat(path), self._found):
                todo = "its directory, or the file, was replaced meanwhile: find out by whom, and try again"
                raise FileUnavailable(file=str(self.final), detail=todo)

    def _link(self) -> None:
        names, directory = (self._name(self.path), self._name(self.final)), self._directory
        try:
            os.link(*names, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            raise _taken(self.final) from None
        except OSError:
            # A file system without links. Between the look and the renaming another file could come under that name and
            # be replaced: Python offers no way to rename without replacing on every system.
            if os.path.lexists(self.final):
                raise _taken(self.final) from None
            os.rename(*names, src_dir_fd=directory, dst_dir_fd=directory)

    def _close(self) -> None:
        descriptors = (self._descriptor, self._directory)
        self._descriptor, self._directory = -1, None
        for descriptor in descriptors:
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)


def _opened(directory: Path) -> int | None:
    """The directory, wherever its path leads later. None where the system takes no names in an open one."""
    if not _NAMES_IN_OPEN_DIRECTORIES:
        return None
    return os.open(directory, os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY))  # O_PATH: it need not be readable


def hold(descriptor: int) -> None:
    """Show others, for as long as the file is open there, that somebody writes it.

    On Linux only: elsewhere this lock and those of SQLite, which writes some drafts, may be one and the same to the kernel.
    """
    if sys.platform == "linux" and fcntl is not None:
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
