"""On what kind of file system a store lies.

SQLite's write-ahead log is memory that processes share, and its locks are those of the kernel: on a file system that other
machines write too, a store is damaged without a word. So it is refused there before SQLite touches anything.
"""

import os
from pathlib import Path
from typing import Final

from aegis_store.errors import StoreUnavailable
from aegis_store.target import Target

ALLOWED_VARIABLE: Final = "AEGIS_STORE_ALLOW_NETWORK_FILE_SYSTEM"
"""Set it to 1 to have stores on network file systems opened all the same."""

_MOUNTS = Path("/proc/self/mountinfo")

# Those that reach over a network, or out of a virtual machine, where the other side may write too. By the kernel's names.
_NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
        *(
            f"fuse.{name}"
            for name in (
                "ceph",
                "davfs2",
                "gcsfuse",
                "glusterfs",
                "goofys",
                "juicefs",
                "mfs",
                "rclone",
                "s3fs",
                "sshfs",
                "vmhgfs-fuse",
            )
        ),
    }
)


def kind_of(path: Path) -> str | None:
    """The kernel's name for the file system where `path` is or would be, `ext4` say. None: unknown here."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:  # no Linux, or no /proc
        return None
    place = os.path.realpath(path)
    found, length = None, 0
    for line in lines:
        before, separator, after = line.partition(b" - ")
        fields = before.split()
        if separator and len(fields) > 4 and after.split():
            mounted = _unescaped(fields[4])
            if _is_below(place, mounted) and len(mounted) >= length:  # of two at one place the later one hides the other
                found, length = os.fsdecode(after.split()[0]), len(mounted)
    return found


def is_network(kind: str | None) -> bool:
    return kind in _NETWORK


def is_allowed() -> bool:
    """Whether the environment allows network file systems."""
    return os.environ.get(ALLOWED_VARIABLE) == "1"


def refuse_network(target: Target, *, allow: bool = False) -> None:
    """Raise `StoreUnavailable` if the store lies on a network file system and that is not allowed."""
    kind = kind_of(target.path)
    if is_network(kind) and not allow and not is_allowed():
        raise StoreUnavailable(
            store=str(target),
            detail=(
                f"it is on a network file system ({kind}), where several machines would damage it: put it on a local disk; "
                f"if only this machine ever opens it, set {ALLOWED_VARIABLE}=1"
            ),
        )


def _unescaped(field: bytes) -> str:
    """A path as the kernel writes it there: space, tab, newline and backslash as octal numbers."""
    for code in (b"040", b"011", b"012", b"134"):
        field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(field)


def _is_below(place: str, mounted: str) -> bool:
    return place == mounted or place.startswith(mounted if mounted.endswith("/") else f"{mounted}/")
