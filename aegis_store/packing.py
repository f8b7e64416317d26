"""Compressed or not: by the suffix when a file of JSON lines is written, by the first bytes when it is read."""

import gzip
import io
import sys
import zlib
from types import ModuleType
from typing import Final, Protocol

from aegis_store.errors import InvalidInput, shown

# As fast as the store reads, and a tenth of the size for JSON. More effort saves a few per cent.
_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3

_GZIP_WINDOW: Final = 31  # zlib's way to ask for gzip's header and checksum
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_READ_BYTES: Final = 256 * 1024


class Damaged(ValueError):
    """The compressed data is cut off or damaged."""


class Packer(Protocol):
    """Compresses piece by piece; `flush` ends it."""

    def compress(self, content: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, content: bytes, /) -> bytes:
        return content

    def flush(self) -> bytes:
        return b""


def packer_for(name: str) -> Packer:
    """What a file of that name is written with. `InvalidInput` for a suffix that is none of the three."""
    lower = name.lower()
    if lower in (".jsonl", ".jsonl.gz", ".jsonl.zst"):  # would be a hidden file
        raise InvalidInput(f"the file needs a name before its suffix, not only {shown(name)}")
    if lower.endswith(".jsonl"):
        return _Plain()
    if lower.endswith(".jsonl.gz"):
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    if lower.endswith(".jsonl.zst"):
        zstd = _zstd()
        parameter = zstd.CompressionParameter
        made: Packer = zstd.ZstdCompressor(options={parameter.compression_level: _ZSTD_LEVEL, parameter.checksum_flag: 1})
        return made
    raise InvalidInput(f"the name must end in .jsonl (plain), .jsonl.gz (gzip) or .jsonl.zst (zstd), not {shown(name)}")


def unpacked(raw: io.BufferedReader) -> io.BufferedReader:
    """`raw` from here on, uncompressed, in bounded memory. Reading raises `Damaged`. To close it does not close `raw`."""
    start = raw.peek(4)
    if start.startswith(_GZIP_MAGIC):
        stream = _Unpacked(gzip.GzipFile(fileobj=raw), (EOFError, gzip.BadGzipFile, zlib.error))
    elif start.startswith(_ZSTD_MAGIC):
        zstd = _zstd()
        stream = _Unpacked(zstd.ZstdFile(raw), (EOFError, zstd.ZstdError))
    else:
        stream = _Unpacked(raw, ())
    return io.BufferedReader(stream, _READ_BYTES)


class _Unpacked(io.RawIOBase):
    def __init__(self, stream: io.BufferedIOBase, damage: tuple[type[Exception], ...]) -> None:
        self._stream = stream
        self._damage = damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # io calls it with nothing else
        try:
            content = self._stream.read(len(buffer))
        except self._damage as error:
            raise Damaged(f"the compressed data is cut off or damaged: {error}") from None
        buffer[: len(content)] = content
        return len(content)


def _zstd() -> ModuleType:
    # Imported when it is needed: most processes never write or read such a file.
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415
    else:
        from backports import zstd  # noqa: PLC0415
    return zstd
