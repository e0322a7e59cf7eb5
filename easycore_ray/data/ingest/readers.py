"""One piece of a source, read and checked: the part of an import that runs on every worker.

Takes a piece (some files, some row groups, a tar shard, some arrays) and gives Arrow tables with one row per sample:
the stored image, its label and sums, or the problem it has. A bad sample becomes a row that names itself, so that one
import reports everything that is wrong, and nothing is written before.

Imported by Ray workers, so no torch in here.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from easycore_ray.data import images
from easycore_ray.data.ingest import archives
from easycore_ray.data.ingest.listing import FILES_SCHEMA
from easycore_ray.data.ingest.measuring import DEFAULT_VIEWING, Viewing, measure
from easycore_ray.data.ingest.parquet_rows import read_row_groups
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.read_ahead import read_ahead

# Of the formats that images.decode reads.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tif", ".tiff",
)  # fmt: skip
ROWS_PER_TABLE = 1000
# In place of the row number: the piece as a whole is damaged, which no sample can be blamed (or skipped) for.
DAMAGED = -1
BYTES_PER_TABLE = 64 * 1024 * 1024
_FILES_AHEAD = 8

# What is known of a checked sample, and the forms of its image that may be stored.
CHECKED_SCHEMA = pa.schema({
    "piece": pa.int32(),
    "row": pa.int64(),
    "key": pa.string(),
    "where": pa.string(),
    "label": pa.int64(),
    "channels": pa.int8(),
    "height": pa.int32(),
    "width": pa.int32(),
    "sums": pa.list_(pa.int64(), 3),
    "squares": pa.list_(pa.int64(), 3),
    # See measuring.Measured.
    "content": pa.binary(16),
    "problem": pa.string(),
    "archive": pa.int32(),
    "rotated": pa.bool_(),
    "several": pa.bool_(),
    "pixels": pa.large_binary(),
    "encoded": pa.large_binary(),
    # Of both, and of pixels whose one channel is stored as three.
    "sha256_pixels": pa.binary(32),
    "sha256_encoded": pa.binary(32),
    "sha256_tripled": pa.binary(32),
})  # fmt: skip


class Sample(NamedTuple):
    """A sample as its source has it, unchecked."""

    key: str
    """Path of the image in the source, where it has one."""
    where: str
    """File and row, to find it again."""
    image: images.Picture | None
    label: Any
    problem: str | None = None
    archive: int = 0
    """Which of the archives that follow one another in a tar file."""


@dataclass(frozen=True)
class Files:
    """Image files, each with the name of its class folder; paths relative to ``root``."""

    root: str
    files: tuple[tuple[str, str], ...]

    def samples(self) -> Iterator[Sample]:
        """See ``Sample``; the label is the class name."""
        # An object store answers each request after milliseconds of waiting.
        return read_ahead(((0, partial(self._sample, file)) for file in self.files), _FILES_AHEAD)

    def _sample(self, file: tuple[str, str]) -> Sample:
        path, label = file
        try:
            return Sample(path, path, paths.read_bytes(paths.join(self.root, path)), label)
        except EasyCoreError as error:
            return Sample(path, path, None, label, str(error))


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of a Parquet file: ``num_rows`` rows from ``first_row`` on."""

    root: str
    path: str
    groups: tuple[int, ...]
    first_row: int
    image_column: str
    label_column: str = "label"
    num_rows: int = 0

    def samples(self) -> Iterator[Sample]:
        """See ``Sample``.

        Raises:
            EasyCoreError: the file is damaged.
        """
        found = read_row_groups(paths.join(self.root, self.path), self.groups, self.image_column, self.label_column)
        for row, (image, label) in enumerate(found, start=self.first_row):
            yield self._sample(row, image, label)

    def _sample(self, row: int, image: Any, label: Any) -> Sample:
        where = f"{self.path}#{row}"
        content, key = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        return Sample(key or where, where, content, label, None if content else "no image bytes")


@dataclass(frozen=True)
class Tar:
    """A WebDataset shard: consecutive members ``key.jpg``, ``key.cls`` (or ``key.json``) are one sample."""

    root: str
    path: str

    def samples(self) -> Iterator[Sample]:
        """See ``Sample``.

        Raises:
            EasyCoreError: the shard is damaged.
        """
        group: _Group | None = None
        seen = set[tuple[int, str]]()
        for member in archives.read_members(paths.join(self.root, self.path)):
            name = PurePosixPath(member.name)
            if name.name.startswith("."):
                continue
            # WebDataset's rule.
            stem, _, suffix = name.name.partition(".")
            key = str(name.with_name(stem))
            if group is None or (group.archive, group.key) != (member.archive, key):
                if group is not None:
                    yield self._sample(group)
                group = _Group(member.archive, key, {}, [])
                if (member.archive, key) in seen:
                    group.problems.append("other members of this name lie further ahead in the archive")
                seen.add((member.archive, key))
            group.add("." + suffix.lower(), member)
        if group is not None:
            yield self._sample(group)

    def _sample(self, group: "_Group") -> Sample:
        archive = f"[archive {group.archive + 1}]" if group.archive else ""
        key, where = group.key, f"{self.path}{archive}/{group.key}"
        label = None
        try:
            group.check()
            label = _tar_label(group.members)
        except ValueError as error:
            return Sample(key, where, None, None, str(error), group.archive)
        return Sample(key, where, group.image(), label, None, group.archive)


class _Group(NamedTuple):
    """Consecutive members of an archive that have one key: ``members`` is their content by suffix."""

    archive: int
    key: str
    members: dict[str, bytes]
    problems: list[str]

    def add(self, suffix: str, member: archives.Member) -> None:
        if member.problem:
            self.problems.append(f"{member.name} is {member.problem}")
        elif suffix in self.members:
            self.problems.append(f"{suffix} is there more than once")
        else:
            self.members[suffix] = member.content

    def check(self) -> None:
        """Raises ValueError unless it is one image and what belongs to it."""
        if self.problems:
            raise ValueError("; ".join(self.problems[:3]))
        pictures = [suffix for suffix in self.members if suffix in IMAGE_SUFFIXES]
        if len(pictures) != 1:
            raise ValueError(
                f"{len(pictures)} images among its {len(self.members):,} members, {_few(list(self.members))}; one is "
                "needed (members belong together that are equal up to the first dot of the file name)"
            )

    def image(self) -> bytes:
        """Content of the image."""
        return next(content for suffix, content in self.members.items() if suffix in IMAGE_SUFFIXES)


def _tar_label(members: dict[str, bytes]) -> Any:
    if ".cls" in members:
        text = members[".cls"].decode(errors="replace").strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    if ".json" not in members:
        raise ValueError("no label: neither .cls nor .json")
    try:
        content = json.loads(members[".json"])
    except ValueError as error:
        raise ValueError(f"unreadable .json ({error})") from error
    return content.get("label") if isinstance(content, dict) else None


@dataclass(frozen=True)
class Arrays:
    """Images that are in memory already: of Pillow, or as uint8 (height, width) or (height, width, 3)."""

    name: str
    first_row: int
    images: tuple[Image.Image | NDArray[Any], ...]
    labels: tuple[int, ...]

    def samples(self) -> Iterator[Sample]:
        """See ``Sample``."""
        for row, (image, label) in enumerate(zip(self.images, self.labels, strict=True), start=self.first_row):
            where = f"{self.name}#{row}"
            yield Sample(where, where, image, label)


@dataclass(frozen=True)
class Named:
    """A piece whose own list of class names is another than the dataset's: ``names`` in its own label order."""

    piece: "Files | RowGroups | Tar | Arrays | Named"
    names: tuple[str, ...]

    def samples(self) -> Iterator[Sample]:
        """See ``Sample``; a label that is a number becomes the name it stands for."""
        for sample in self.piece.samples():
            label = sample.label
            if isinstance(label, bool) or not isinstance(label, int):
                yield sample
            elif 0 <= label < len(self.names):
                yield sample._replace(label=self.names[label])
            else:
                limit = len(self.names) - 1
                yield sample._replace(problem=f"unknown label {label}; its file names the classes 0 .. {limit}")


Piece = Files | RowGroups | Tar | Arrays | Named
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
        pieces: what to read, in source order, by split.
        classes: names in label order, or None if they are not known before the labels are.
        num_rows: samples by split, or None if counting them takes reading (tar shards).
        names_from: where the class names come from, for people; "" if there are none.
        passed_over: number of files that are not read, by suffix.
        files: what is read, as ``listing.FILES_SCHEMA``; empty for sources that have names instead of paths.
    """

    pieces: dict[Split, list[Piece]]
    classes: list[str] | None
    num_rows: dict[Split, int] | None
    names_from: str = ""
    passed_over: dict[str, int] = field(default_factory=dict)
    files: pa.Table = field(default_factory=FILES_SCHEMA.empty_table)

    @property
    def total(self) -> int | None:
        """Samples of all splits, if that is known."""
        return None if self.num_rows is None else sum(self.num_rows.values())

    def sizes(self) -> tuple[list[int], str]:
        """Size of each piece for a line of progress, and its unit: images where they are counted, else MiB."""
        pieces = [piece for split in get_args(Split) for piece in self.pieces.get(split, [])]
        if self.num_rows is not None:
            return [_count_rows(piece) for piece in pieces], "images"
        known = dict(zip(self.files["path"].to_pylist(), self.files["size"].to_pylist(), strict=True))
        return [max(1, known.get(_path_of(piece), 0) >> 20) for piece in pieces], "MiB"


def _count_rows(piece: Piece) -> int:
    """Samples of a piece; 1 where that is not known."""
    if isinstance(piece, Named):
        return _count_rows(piece.piece)
    if isinstance(piece, Tar):
        return 1
    return (
        len(piece.labels)
        if isinstance(piece, Arrays)
        else len(piece.files)
        if isinstance(piece, Files)
        else piece.num_rows
    )


def _path_of(piece: Piece) -> str:
    """Path of the file that a piece lies in; that of its folder for image files."""
    if isinstance(piece, Named):
        return _path_of(piece.piece)
    if isinstance(piece, Tar | RowGroups):
        return paths.join(piece.root, piece.path)
    return ""


def label_index(label: Any, classes: dict[str, int] | None) -> int:
    """The class index a source's label means: a whole number, or the name of a class.

    Raises:
        ValueError: it is missing, unknown, or neither.
    """
    if label is None or label == "":
        raise ValueError("no label")
    if isinstance(label, str):
        if classes and label in classes:
            return classes[label]
        known = f"classes are {_few(list(classes))}" if classes else "pass the class names with --classes FILE"
        raise ValueError(f"unknown label {label!r}; {known}")
    if isinstance(label, bool) or not isinstance(label, int):
        whole = f"; write it as {label:.0f}" if isinstance(label, float) and label.is_integer() else ""
        raise ValueError(f"label {label!r} is no whole number{whole}")
    limit = len(classes) if classes else 2**31
    if not 0 <= label < limit:
        from_one = "; if the labels count from 1, write them as label - 1" if label == limit else ""
        raise ValueError(f"unknown label {label}; allowed are 0 .. {limit - 1}{from_one}")
    return label


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")


def check(
    number: int,
    piece: Piece,
    classes: Sequence[str] | None,
    viewing: Viewing = DEFAULT_VIEWING,
) -> Iterator[pa.Table]:
    """The samples of a piece as tables of ``CHECKED_SCHEMA``, in order, none much larger than ``BYTES_PER_TABLE``.

    Good rows have no ``problem`` and hold the image in ``pixels`` or ``encoded``, or both (see
    ``measuring.Measured``); bad rows say what is wrong and hold no image. Where the piece cannot be read on, the
    last row has the number ``DAMAGED``.

    Args:
        number: of the piece, repeated in every row.
        piece: what to read.
        classes: names in label order, or None if the source does not know them.
        viewing: what is made of each image.
    """
    indices = {name: index for index, name in enumerate(classes)} if classes else None
    rows: list[dict[str, Any]] = []
    held = 0
    try:
        for row, sample in enumerate(piece.samples()):
            found = _checked(sample, indices, viewing)
            place = {"piece": number, "row": row, "key": sample.key, "where": sample.where, "archive": sample.archive}
            rows.append({**place, **found})
            held += len(found.get("pixels") or b"") + len(found.get("encoded") or b"")
            if len(rows) == ROWS_PER_TABLE or held >= BYTES_PER_TABLE:
                # Given up before the table is used, so that it is the only copy.
                table, rows, held = _table(rows), [], 0
                yield table
    except EasyCoreError as error:
        rows.append({"piece": number, "row": DAMAGED, "problem": str(error)})
    yield _table(rows)


def _checked(sample: Sample, classes: dict[str, int] | None, viewing: Viewing) -> dict[str, Any]:
    try:
        if sample.problem or sample.image is None:
            raise ValueError(sample.problem or "no image")
        label = label_index(sample.label, classes)
        found = measure(sample.image, viewing)
    except ValueError as error:
        return {"problem": " ".join(str(error).split())}
    tripled = found.pixels * 3 if found.pixels and found.channels == 1 else None
    forms = {"pixels": found.pixels, "encoded": found.encoded, "tripled": tripled}
    hashes = {f"sha256_{form}": hashlib.sha256(held).digest() for form, held in forms.items() if held is not None}
    return {"label": label, **found._asdict(), **hashes}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=CHECKED_SCHEMA)
