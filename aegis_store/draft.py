"""A file that appears under its name whole, synced and looked at, or not at all.

It is written beside its name, as `NAME.tmp`, and linked into place at the end. A link never replaces a file, so of two
processes that write the same name at once one wins, and the other is told.
"""

import io
import os
from contextlib import suppress
from pathlib import Path

from aegis_store.errors import InvalidInput, shown
from aegis_store.sqlite_errors import errors_of


class Draft:
    """A file being written, mode 0600 (less where the umask allows less). End it with `publish` or with `discard`.

    Every method raises `StoreFull` when the disk or a quota is full, `StoreUnavailable` when the file system refuses.
    """

    def __init__(self, final: Path) -> None:
        """Begin. Raises `InvalidInput` if the name is taken, by a file or by the draft of another writer."""
        self.final = final
        self.path = final.with_name(f"{final.name}.tmp")
        self.size_bytes = 0
        self._descriptor = -1
        self._stands = False
        with errors_of(str(final)):
            if os.path.lexists(final):
                raise _taken(final)
            try:
                self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
            except FileExistsError:
                raise InvalidInput(
                    f"{shown(str(self.path))} stands already: another process is writing it, or has died; if so, remove it"
                ) from None
            self._stands = True

    def write(self, content: bytes) -> None:
        """Write on. Raises as the class says; then discard the draft."""
        with errors_of(str(self.final)):
            rest = memoryview(content)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[os.write(self._descriptor, rest) :]
            self.size_bytes += len(content)

    def reopened(self) -> io.BufferedReader:
        """What was written, synced, from its start: from the disk where the system can be told to forget its cache."""
        with errors_of(str(self.final)):
            os.fsync(self._descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return os.fdopen(os.dup(self._descriptor), "rb")

    def publish(self) -> None:
        """Give the file its name, durably. Raises `InvalidInput` if the name was taken meanwhile."""
        with errors_of(str(self.final)):
            os.fsync(self._descriptor)
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


def _taken(final: Path) -> InvalidInput:
    return InvalidInput(
        f"{shown(str(final))} stands already, and no file is overwritten: choose another name, or remove it first"
    )


def sync_directory(directory: Path) -> None:
    """Have the names in the directory survive a power cut."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return  # Windows opens no directories, and syncs their entries by itself
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
