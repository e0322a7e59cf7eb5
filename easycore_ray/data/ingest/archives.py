"""Members of tar archives, read from front to back and trusted only as far as the file proves itself whole.

A tar has no table of contents: whoever stops at the first header that makes no sense, as ``tarfile`` does, loses the
rest of the file without a word. Here every header has its checksum, every member its length, and every archive its two
zero blocks, or the file is refused. The format is that of POSIX.1-2001 (ustar and pax) with the long names of GNU tar.

Imported by Ray workers, so no torch in here.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
# What an archive is padded to behind its two zero blocks: not at all, to the 20 blocks that are tar's default, or to
# a larger power of two (tar --blocking-factor). More zeros than that are data that are missing.
_RECORDS = (_BLOCK, 20 * _BLOCK, *(_BLOCK << power for power in range(5, 12)))
_GZIP = b"\x1f\x8b"
_READ_BYTES = 1024 * 1024
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_NO_MEMBERS = (tarfile.DIRTYPE, b"V")  # folders, and GNU tar's name of a volume
# Types that have no content, whatever size their header says.
_WITHOUT_CONTENT = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


class Member(NamedTuple):
    """A member of an archive, folders left out.

    Attributes:
        archive: number of the archive within the file, from 0; several may follow one another, as ``cat`` makes them.
        name: path in the archive.
        content: of a file, else empty.
        problem: why there is no content, e.g. ``a symbolic link``.
    """

    archive: int
    name: str
    content: bytes
    problem: str | None = None


def read_members(path: str) -> Iterator[Member]:
    """All members of a tar file, plain or gzip, in order. The file is read once, without seeking.

    Raises:
        EasyCoreError: the file is cut, damaged or filled with zeros somewhere; says at which byte (of the unpacked
            archive). Members before that have been given already.
    """
    filesystem, inner = paths.locate(path)
    try:
        # Arrow would unpack by the file's name.
        with filesystem.open_input_stream(inner, compression=None) as raw:
            packed = io.BufferedReader(raw, _READ_BYTES)
            if packed.peek(len(_GZIP)).startswith(_GZIP):
                # Goes through all gzip members, and checks length and CRC of each.
                yield from _members(_Blocks(gzip.GzipFile(fileobj=packed)))
            else:
                yield from _members(_Blocks(packed))
    except (OSError, EOFError, zlib.error, _DamagedError) as error:
        raise EasyCoreError(f"{path} cannot be read: {error}") from error


class _DamagedError(Exception):
    """What is wrong with an archive, and where."""


class _Blocks:
    """An unpacked stream, by blocks."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self.offset = 0
        """Bytes read so far."""

    def header(self) -> bytes:
        """The next block; empty at the end of the file."""
        block = self._stream.read(_BLOCK)
        if block and len(block) < _BLOCK:
            raise _DamagedError(f"it ends inside a block, {self._at(self.offset + len(block))}")
        self.offset += len(block)
        return block

    def content(self, size: int, name: str) -> bytes:
        """Content of a member, whose padding is skipped."""
        padded = -(-size // _BLOCK) * _BLOCK
        found = bytearray()
        # In parts, since a damaged size may be beyond all memory.
        while part := self._stream.read(min(padded - len(found), _READ_BYTES)):
            found += part
        if len(found) < padded:
            raise _DamagedError(f"it ends inside {name}, {self._at(self.offset + len(found))}")
        self.offset += padded
        return bytes(memoryview(found)[:size])

    def end(self, start: int) -> bytes:
        """Go on behind the first zero block, to the block behind the last one.

        Args:
            start: where the archive that ends here has begun, in bytes.

        Returns:
            The header of a further archive; empty at the end of the file.
        """
        first = self.offset - _BLOCK
        block = _ZEROS
        while block == _ZEROS and self.offset - first <= 2 * _BLOCK + max(_RECORDS):
            block = self.header()
        zeros = self.offset - len(block) - first
        length = first + zeros - start
        if zeros < 2 * _BLOCK:
            raise _DamagedError(f"a single block of zeros, {self._at(first)}, where an archive ends with two")
        if not any(length % record == 0 and zeros < 2 * _BLOCK + record for record in _RECORDS):
            raise _DamagedError(
                f"{zeros:,} bytes of zeros or more, {self._at(first)}, are no padding of tar; data is missing there"
            )
        return block

    @staticmethod
    def _at(offset: int) -> str:
        return f"at byte {offset:,}"


class _Described:
    """What extended headers say of the members that follow: pax records by keyword, GNU's long names among them."""

    def __init__(self) -> None:
        self.general: dict[str, str] = {}
        """For all members up to the end of the archive."""
        self.next: dict[str, str] = {}
        """For the next member."""

    def get(self, keyword: str) -> str | None:
        """The record that holds for the next member."""
        return self.next.get(keyword, self.general.get(keyword))

    def add(self, info: tarfile.TarInfo, content: bytes) -> bool:
        """Take in an extended header; False if the member is none."""
        if info.type in _PAX:
            self.next |= _records(content)
        elif info.type == tarfile.XGLTYPE:
            self.general |= _records(content)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            self.next["path"] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        else:
            return info.type == tarfile.GNUTYPE_LONGLINK
        return True


def _members(blocks: _Blocks) -> Iterator[Member]:
    archive, start, described = 0, 0, _Described()
    block = blocks.header()
    while block:
        at = blocks.offset - _BLOCK
        if block == _ZEROS:
            block = blocks.end(start)
            if described.next:
                raise _DamagedError(f"the header at byte {at:,} is blank")
            if not block:
                return
            archive, start, described = archive + 1, blocks.offset - _BLOCK, _Described()
            continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            name = described.get("path") or info.name
            size = int(described.get("size") or info.size)
            content = b"" if info.type in _WITHOUT_CONTENT else blocks.content(size, name)
            extended = described.add(info, content)
        except (tarfile.HeaderError, ValueError) as error:
            raise _DamagedError(f"no tar header at byte {at:,} ({error})") from error
        if not extended:
            if info.type not in _NO_MEMBERS:
                yield _member(archive, name, info, content, described)
            described.next = {}
        block = blocks.header()
    raise _DamagedError(f"it ends at byte {blocks.offset:,} without the two blocks of zeros that end an archive")


def _member(archive: int, name: str, info: tarfile.TarInfo, content: bytes, described: _Described) -> Member:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = name.encode("utf-8", "surrogateescape")
        raise _DamagedError(f"the name {shown!r} is not UTF-8") from error
    if info.type == tarfile.GNUTYPE_SPARSE or any(keyword.startswith("GNU.sparse") for keyword in described.next):
        raise _DamagedError(f"{name} is stored as a sparse file; pack it without --sparse")
    if info.isreg():
        return Member(archive, name, content)
    return Member(archive, name, b"", _WITHOUT_CONTENT.get(info.type, f"of the unknown type {info.type!r}"))


def _records(content: bytes) -> dict[str, str]:
    """Records of a pax header, ``LENGTH KEYWORD=VALUE`` and a newline each."""
    found = {}
    while content.strip(b"\0"):
        length, space, _ = content.partition(b" ")
        record, content = content[: int(length)], content[int(length) :]
        keyword, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not (space and equals and record.endswith(b"\n") and len(record) == int(length)):
            raise ValueError("a pax record is damaged")
        found[keyword.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    return found
