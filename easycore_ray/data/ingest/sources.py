"""What there is to import: pieces of a source, their splits, and the class names if the source has them.

Takes the words of ``PrepareConfig`` (``digits``, ``torchvision:NAME`` or a path), gives a ``Source``. Of a path only
names, sizes and footers are read here; its images are read piece by piece on the workers. Pieces are listed in sorted
order and cut the same way everywhere, so that sample ids depend on the source alone.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest import builtin_sources
from easycore_ray.data.ingest.class_lists import classes_file_beside, name_labels, read_classes, rename_classes
from easycore_ray.data.ingest.columns import SourceColumns, find_columns
from easycore_ray.data.ingest.folders import read_image_folders, split_of_word, use_val_as_test
from easycore_ray.data.ingest.listing import Listing, SourceFile, count_by_suffix, list_folders, list_tree, to_table
from easycore_ray.data.ingest.readers import IMAGE_SUFFIXES, Files, Piece, RowGroups, Source, Split, Tar
from easycore_ray.data.ingest.shard_numbers import check_shard_numbers
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

__all__ = ["find_files", "is_path", "list_configured", "list_source", "read_classes"]

TORCHVISION = "torchvision:"
FOLDERS = "the folders"
"""Where the class names of image folders come from."""
_FILES_PER_PIECE = 500
_ROWS_PER_PIECE = 1000
_BYTES_PER_PIECE = 64 * 1024 * 1024

_SUFFIXES = {
    "parquet": (".parquet",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "imagefolder": IMAGE_SUFFIXES,
}


@dataclass(frozen=True)
class _Options:
    """How a source is to be read: see ``list_source``."""

    layout: str
    image_column: str | None
    label_column: str | None
    allow_one_class: bool


def is_path(source: str) -> bool:
    """False for the sources that have names of their own: ``digits`` and ``torchvision:NAME``."""
    return source != "digits" and not source.startswith(TORCHVISION)


def list_configured(config: PrepareConfig) -> Source:
    """List what a configuration imports: see ``list_source``."""
    return list_source(
        config.source, layout=config.format, test_source=config.test_source, classes=config.classes,
        image_column=config.image_column, label_column=config.label_column, allow_one_class=config.allow_one_class,
    )  # fmt: skip


def list_source(
    source: str,
    *,
    layout: str = "auto",
    test_source: str | None = None,
    classes: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    allow_one_class: bool = True,
) -> Source:
    """List a source and, if given, the one its test split is taken from.

    Args:
        source: ``digits``, ``torchvision:NAME`` or a path.
        layout: ``auto``, ``imagefolder``, ``parquet`` or ``webdataset``, for paths.
        test_source: like ``source``; replaces its test split. Its labels are mapped by name if it names its classes.
        classes: file of class names (see ``read_classes``); replaces the source's.
        image_column: of Parquet files; ``image`` or ``img`` if None.
        label_column: of Parquet files; ``label`` if None.
        allow_one_class: whether image folders may hold a single class.

    Raises:
        EasyCoreError: nothing is there, it is not clear what it is, it has no training split, or its files name
            their classes differently.
    """
    options = _Options(layout, image_column, label_column, allow_one_class)
    listed = _list(source, options)
    if "train" not in listed.pieces:
        raise EasyCoreError(
            f"{source} has no training split, only {' and '.join(listed.pieces)}; pass its parent folder"
        )
    if test_source is not None:
        other = _list(test_source, replace(options, allow_one_class=True))
        listed = _with_test(listed, other, source, test_source)
    if classes is not None:
        listed = _with_classes(listed, source, paths.absolute(classes))
    return listed


def _with_test(source: Source, other: Source, name: str, other_name: str) -> Source:
    """The source with the other's test split, or all of the other if it has none of that name."""
    split: Split = "test" if "test" in other.pieces else next(iter(other.pieces))
    places = {"place": names_place(other, other_name), "classes_place": names_place(source, name)}
    pieces = name_labels(other.pieces[split], other.classes, source.classes, **places)
    return replace(
        source,
        classes=source.classes or other.classes,
        names_from=source.names_from or other.names_from,
        pieces={**source.pieces, "test": pieces},
        num_rows={**source.num_rows, "test": other.num_rows[split]} if source.num_rows and other.num_rows else None,
        files=pa.concat_tables([source.files, other.files]),
        passed_over={
            suffix: source.passed_over.get(suffix, 0) + other.passed_over.get(suffix, 0)
            for suffix in sorted({*source.passed_over, *other.passed_over})
        },
    )


def _with_classes(source: Source, name: str, path: str) -> Source:
    """The source with the class names of a file."""
    classes = read_classes(path)
    places = {"place": names_place(source, name), "classes_place": path}
    # Labels of image folders are names already, which no other list can stand for.
    put = name_labels if source.names_from == FOLDERS else rename_classes
    pieces = {split: put(found, source.classes, classes, **places) for split, found in source.pieces.items()}
    return replace(source, pieces=pieces, classes=classes, names_from=path, files=_and_file(source.files, path))


def names_place(source: Source, name: str) -> str:
    """The file or folder that the class names of a source come from, for a message; ``name`` where it names none."""
    return source.names_from if source.names_from.startswith(("/", "s3:", "gs:")) else name


def _and_file(files: pa.Table, path: str) -> pa.Table:
    found = list_tree(path)
    return pa.concat_tables([files, to_table(found.root, found.files)])


def _list(source: str, options: _Options) -> Source:
    if is_path(source):
        return _list_path(paths.absolute(source), options)
    if options.image_column or options.label_column:
        raise EasyCoreError(f"image_column and label_column go with Parquet files, {source} has none; leave them out")
    if source == "digits":
        return builtin_sources.digits_source()
    return builtin_sources.torchvision_source(source.removeprefix(TORCHVISION))


def find_files(root: str, layout: str) -> tuple[Listing, list[SourceFile], str]:
    """The files of a path source: all of them, those that are read, and their layout.

    Raises:
        EasyCoreError: see ``listing.list_tree``; there are none, or of several layouts.
    """
    tree = list_tree(root)
    layout = _layout(root, tree) if layout == "auto" else layout
    files = tree.having(_SUFFIXES[layout])
    if not files:
        raise EasyCoreError(
            f"{root} holds no {layout} files ({', '.join(_SUFFIXES[layout])}); check --source and --format"
        )
    return tree, files, layout


def _list_path(path: str, options: _Options) -> Source:
    """Any path: its files by layout and split."""
    tree, files, layout = find_files(path, options.layout)
    if layout != "parquet" and (options.image_column or options.label_column):
        raise EasyCoreError(
            f"image_column and label_column go with Parquet files, {path} holds {layout} files; leave them out"
        )
    names = [file.name for file in files]
    root, one_file = tree.root, tree.root != path
    if layout == "imagefolder":
        listed = _image_folders(root, names, allow_one_class=options.allow_one_class)
    else:
        if not one_file:
            check_shard_numbers(root, names)
        by_split: dict[Split, list[str]] = {"train": names} if one_file else _by_split(root, names)
        listed = _parquet(root, by_split, options) if layout == "parquet" else _tars(root, by_split)
    beside = None if listed.classes else classes_file_beside(root)
    if beside is not None:
        listed = replace(listed, classes=read_classes(beside), names_from=beside)
    recorded = to_table(root, files)
    used = {"classes.json"} if beside == paths.join(root, "classes.json") else set()
    read = _SUFFIXES[layout]
    others = (file.name for file in tree.files if not (file.name.lower().endswith(read) or file.name in used))
    return replace(
        listed,
        passed_over=count_by_suffix(others, tree.hidden),
        files=recorded if beside is None else _and_file(recorded, beside),
    )


def _layout(path: str, tree: Listing) -> str:
    found = [layout for layout, suffixes in _SUFFIXES.items() if tree.having(suffixes)]
    if len(found) == 1:
        return found[0]
    raise EasyCoreError(
        f"{path} holds {' and '.join(found) if found else 'no images, Parquet files or tar shards'}; "
        "allowed is one kind: pass a folder of it, or choose with --format imagefolder|parquet|webdataset"
    )


def _by_split(root: str, names: Sequence[str]) -> dict[Split, list[str]]:
    """File names by split, read off a folder or a word of the file name (``train-00000-of-00010``).

    Without any such name all files are training data. Without a test split, ``val`` is the test split.
    """
    splits = [_split_of_file(root, name) for name in names]
    if not any(splits):
        return {"train": list(names)}
    found: dict[Split, list[str]] = {}
    for name, split in zip(names, splits, strict=True):
        if split is None:
            raise EasyCoreError(
                f"{root}/{name} belongs to no split while others do; name it train or test, or move it away"
            )
        found.setdefault(split, []).append(name)
    return use_val_as_test(found)


def _split_of_file(root: str, name: str) -> Split | None:
    *folders, file = name.lower().split("/")
    found = {split for word in [*folders, *re.split(r"[^a-z]+", file)] if (split := split_of_word(word))}
    if len(found) > 1:
        raise EasyCoreError(
            f"{root}/{name} is named after the splits {' and '.join(sorted(found, reverse=True))}; rename it, or pass "
            "the folder of one split as --source and another as --test-source"
        )
    return next(iter(found), None)


def _image_folders(root: str, names: Sequence[str], *, allow_one_class: bool) -> Source:
    """See ``folders``; classes are the sorted folder names."""
    reading = read_image_folders(root, names, allow_one_class=allow_one_class)
    pieces: dict[Split, list[Piece]] = {
        split: [
            Files(root, tuple((name, label) for label, name in files[start : start + _FILES_PER_PIECE]))
            for start in range(0, len(files), _FILES_PER_PIECE)
        ]
        for split, files in reading.by_split.items()
    }
    # Folders, not files, say which classes there should be: an empty one is a mistake to be reported.
    folders = {name for parent in reading.parents for name in list_folders(f"{root}/{parent}".rstrip("/"))}
    counts = {split: len(files) for split, files in reading.by_split.items()}
    return Source(pieces, sorted(folders), counts, FOLDERS)


def _parquet(root: str, by_split: dict[Split, list[str]], options: _Options) -> Source:
    """Row groups of all files; class names from the first file that has Hugging Face's metadata, train first."""
    num_rows: dict[Split, int] = {}
    found: list[tuple[Split, str, SourceColumns, list[Piece]]] = []
    for split in sorted(by_split, key=lambda split: split != "train"):
        names = by_split[split]
        num_rows[split] = 0
        with ThreadPoolExecutor(16) as pool:
            footers = pool.map(lambda name: _footer(paths.join(root, name)), names)
        for name, (metadata, schema) in zip(names, footers, strict=True):
            columns = find_columns(
                paths.join(root, name), schema, image=options.image_column, label=options.label_column
            )
            found.append((split, name, columns, list(_row_groups(root, name, metadata, columns))))
            num_rows[split] += metadata.num_rows
    first = next(((name, columns) for _, name, columns, _ in found if columns.classes), None)
    classes, place = (first[1].classes, paths.join(root, first[0])) if first else (None, "")
    pieces: dict[Split, list[Piece]] = {split: [] for split in by_split}
    for split, name, columns, groups in found:
        places = {"place": paths.join(root, name), "classes_place": place}
        pieces[split] += name_labels(groups, columns.classes, classes, **places)
    return Source(pieces, classes, num_rows, place)


def _footer(path: str) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with paths.open_input(path) as stream:
            file = pq.ParquetFile(stream)
            return file.metadata, file.schema_arrow
    except (OSError, pa.ArrowException, ValueError) as error:  # names that are no UTF-8 among them
        raise EasyCoreError(f"{path} cannot be read as Parquet: {error}") from error


def _row_groups(root: str, name: str, metadata: pq.FileMetaData, columns: SourceColumns) -> Iterator[RowGroups]:
    """Consecutive row groups, put together to pieces of some 1,000 rows."""
    groups: list[int] = []
    first_row = rows = size = 0
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group)
        if groups and (rows + found.num_rows > _ROWS_PER_PIECE or size + found.total_byte_size > _BYTES_PER_PIECE):
            yield RowGroups(root, name, tuple(groups), first_row, columns.image, columns.label, rows)
            groups, first_row, rows, size = [], first_row + rows, 0, 0
        groups.append(group)
        rows, size = rows + found.num_rows, size + found.total_byte_size
    if groups:
        yield RowGroups(root, name, tuple(groups), first_row, columns.image, columns.label, rows)


def _tars(root: str, by_split: dict[Split, list[str]]) -> Source:
    return Source({split: [Tar(root, name) for name in names] for split, names in by_split.items()}, None, None)
