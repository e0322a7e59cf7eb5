"""What there is to import: pieces of a source, their splits, and the class names if the source has them.

Takes the words of ``PrepareConfig`` (``digits``, ``torchvision:NAME`` or a path), gives a ``Source``. Of a path only
names, sizes and footers are read here; its images are read piece by piece on the workers. Pieces are listed in sorted
order and cut the same way everywhere, so that sample ids depend on the source alone.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from easycore_ray.data.ingest import builtin_sources
from easycore_ray.data.ingest.readers import IMAGE_SUFFIXES, Files, Piece, RowGroups, Source, Split, Tar
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

TORCHVISION = "torchvision:"
_FILES_PER_PIECE = 500
_ROWS_PER_PIECE = 1000
_BYTES_PER_PIECE = 64 * 1024 * 1024

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
_SUFFIXES = {
    "parquet": (".parquet",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "imagefolder": IMAGE_SUFFIXES,
}


def is_path(source: str) -> bool:
    """False for the sources that have names of their own: ``digits`` and ``torchvision:NAME``."""
    return source != "digits" and not source.startswith(TORCHVISION)


def list_source(
    source: str, *, layout: str = "auto", test_source: str | None = None, classes: str | None = None
) -> Source:
    """List a source and, if given, the one its test split is taken from.

    Args:
        source: ``digits``, ``torchvision:NAME`` or a path.
        layout: ``auto``, ``imagefolder``, ``parquet`` or ``webdataset``, for paths.
        test_source: like ``source``; replaces its test split.
        classes: file of class names (see ``read_classes``); replaces the source's.

    Raises:
        EasyCoreError: nothing is there, it is not clear what it is, or it has no training split.
    """
    listed = _list(source, layout)
    if "train" not in listed.pieces:
        raise EasyCoreError(
            f"{source} has no training split, only {' and '.join(listed.pieces)}; pass its parent folder"
        )
    if test_source is not None:
        listed = _with_test(listed, _list(test_source, layout))
    if classes is not None:
        listed = replace(listed, classes=read_classes(paths.absolute(classes)))
    return listed


def _with_test(source: Source, other: Source) -> Source:
    """The source with the other's test split, or all of the other if it has none of that name."""
    split: Split = "test" if "test" in other.pieces else next(iter(other.pieces))
    return Source(
        {**source.pieces, "test": other.pieces[split]},
        source.classes,
        {**source.num_rows, "test": other.num_rows[split]} if source.num_rows and other.num_rows else None,
    )


def _list(source: str, layout: str) -> Source:
    if source == "digits":
        return builtin_sources.digits_source()
    if source.startswith(TORCHVISION):
        return builtin_sources.torchvision_source(source.removeprefix(TORCHVISION))
    return _list_path(paths.absolute(source), layout)


def _list_path(root: str, layout: str) -> Source:
    """Any path: its files by layout and split."""
    if not paths.exists(root):
        raise EasyCoreError(f"{root} does not exist; pass --source FOLDER, digits or torchvision:NAME")
    one_file = not paths.is_dir(root)
    if one_file:
        root, name = root.rsplit("/", 1)
        names = [name]
    else:
        names = sorted(path.removeprefix(root).lstrip("/") for path in paths.list_files(root))
        names = [name for name in names if not any(_is_hidden(part) for part in name.split("/"))]
    layout = _layout(root, names) if layout == "auto" else layout
    names = [name for name in names if name.lower().endswith(_SUFFIXES[layout])]
    if not names:
        raise EasyCoreError(
            f"{root} holds no {layout} files ({', '.join(_SUFFIXES[layout])}); check --source and --format"
        )
    whole: dict[Split, list[str]] = {"train": names}
    by_split = whole if one_file else _by_split(root, names, folders_only=layout == "imagefolder")
    lister = {"imagefolder": _image_folders, "parquet": _parquet, "webdataset": _tars}[layout]
    listed = lister(root, by_split)
    return replace(listed, classes=listed.classes or _classes_beside(root))


def _layout(root: str, names: Sequence[str]) -> str:
    found = [layout for layout, suffixes in _SUFFIXES.items() if any(name.lower().endswith(suffixes) for name in names)]
    if len(found) == 1:
        return found[0]
    raise EasyCoreError(
        f"{root} holds {' and '.join(found) if found else 'no images, Parquet files or tar shards'}; "
        "allowed is one kind: pass a folder of it, or choose with --format imagefolder|parquet|webdataset"
    )


def _by_split(root: str, names: Sequence[str], *, folders_only: bool) -> dict[Split, list[str]]:
    """File names by split, read off the first folder or a word of the file name (``train-00000-of-00010``).

    Without any such name all files are training data. Without a test split, ``val`` is the test split.
    """
    splits = [_split_of(name, folders_only=folders_only) for name in names]
    if not any(splits) or (folders_only and not all(splits)):
        return {"train": list(names)}
    if not all(splits):
        stray = names[splits.index(None)]
        raise EasyCoreError(
            f"{root}/{stray} belongs to no split while others do; name it train or test, or move it away"
        )
    found: dict[Split, list[str]] = {}
    for name, split in zip(names, splits, strict=True):
        assert split is not None
        found.setdefault(split, []).append(name)
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")
    return found


def _split_of(name: str, *, folders_only: bool) -> Split | None:
    *folders, file = name.lower().split("/")
    # Below the first folder an image's folders are classes.
    words = folders[:1] if folders_only else [*folders, *re.split(r"[^a-z]+", file)]
    return next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), None)


def _image_folders(root: str, by_split: dict[Split, list[str]]) -> Source:
    """``CLASS/…/file`` below the root, or below a folder per split; classes are the sorted folder names."""
    depth = int(all(_split_of(name, folders_only=True) for names in by_split.values() for name in names))
    pieces: dict[Split, list[Piece]] = {}
    for split, names in by_split.items():
        loose = [name for name in names if name.count("/") <= depth]
        if loose:
            raise EasyCoreError(
                f"{root}/{loose[0]} lies in no class folder; the layout is CLASS/image, or train/CLASS/image"
            )
        # Sorted by class first: the order of torchvision's ImageFolder.
        files = sorted((name.split("/")[depth], name) for name in names)
        pieces[split] = [
            Files(root, tuple((name, label) for label, name in files[start : start + _FILES_PER_PIECE]))
            for start in range(0, len(files), _FILES_PER_PIECE)
        ]
    # Folders, not files, say which classes there should be: an empty one is a mistake to be reported.
    tops = sorted({name.split("/")[0] for name in by_split.get("train", [])}) if depth else [""]
    folders = {name for top in tops for name in _folders(f"{root}/{top}".rstrip("/"))}
    return Source(pieces, sorted(folders), {split: len(names) for split, names in by_split.items()})


def _folders(path: str) -> list[str]:
    """Names of the folders directly below a path, hidden ones left out."""
    filesystem, inner = paths.locate(path)
    infos = filesystem.get_file_info(pafs.FileSelector(inner))
    names = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
    return [name for name in names if not _is_hidden(name)]


def _is_hidden(name: str) -> bool:
    """True for what file managers and archivers leave behind."""
    return name.startswith(".") or name == "__MACOSX"


def _parquet(root: str, by_split: dict[Split, list[str]]) -> Source:
    """Row groups of all files; class names from the first file that has Hugging Face's metadata."""
    pieces: dict[Split, list[Piece]] = {}
    classes: list[str] | None = None
    num_rows: dict[Split, int] = {}
    for split, names in by_split.items():
        pieces[split], num_rows[split] = [], 0
        with ThreadPoolExecutor(16) as pool:
            footers = pool.map(lambda name: _footer(paths.join(root, name)), names)
        for name, (metadata, schema) in zip(names, footers, strict=True):
            classes = classes or _class_label_names(schema)
            pieces[split] += _row_groups(root, name, metadata, _image_column(paths.join(root, name), schema))
            num_rows[split] += metadata.num_rows
    return Source(pieces, classes, num_rows)


def _footer(path: str) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with paths.open_input(path) as stream:
            file = pq.ParquetFile(stream)
            return file.metadata, file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise EasyCoreError(f"{path} cannot be read as Parquet: {error}") from error


def _image_column(path: str, schema: pa.Schema) -> str:
    found = [name for name in ("image", "img") if name in schema.names]
    if not found or "label" not in schema.names:
        raise EasyCoreError(
            f"{path} has the columns {', '.join(schema.names)}; needed are image (or img) of bytes or "
            "struct<bytes, path>, and label"
        )
    kind = schema.field(found[0]).type
    if not (pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise EasyCoreError(
            f"{path} has {found[0]} of {kind}; needed are image files in bytes or struct<bytes, path>; save "
            "arrays of pixels as PNG, and leave normalisation, which is part of every model, out"
        )
    return found[0]


def _row_groups(root: str, name: str, metadata: pq.FileMetaData, image_column: str) -> Iterator[RowGroups]:
    """Consecutive row groups, put together to pieces of some 1,000 rows."""
    groups: list[int] = []
    first_row = rows = size = 0
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group)
        if groups and (rows + found.num_rows > _ROWS_PER_PIECE or size + found.total_byte_size > _BYTES_PER_PIECE):
            yield RowGroups(root, name, tuple(groups), first_row, image_column)
            groups, first_row, rows, size = [], first_row + rows, 0, 0
        groups.append(group)
        rows, size = rows + found.num_rows, size + found.total_byte_size
    if groups:
        yield RowGroups(root, name, tuple(groups), first_row, image_column)


def _class_label_names(schema: pa.Schema) -> list[str] | None:
    """Names of the ``ClassLabel`` feature that the datasets library keeps in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] or None


def _tars(root: str, by_split: dict[Split, list[str]]) -> Source:
    return Source({split: [Tar(root, name) for name in names] for split, names in by_split.items()}, None, None)


def _classes_beside(root: str) -> list[str] | None:
    """Content of a ``classes.json`` in the folder or its parent."""
    parent = root.rsplit("/", 1)[0]
    for folder in [root] if parent.endswith("/") else [root, parent]:  # a bucket has no parent
        path = f"{folder}/classes.json"
        if paths.exists(path):
            return read_classes(path)
    return None


def read_classes(path: str) -> list[str]:
    """Class names in label order, from a JSON list, ``{"classes": [...]}``, or text with one name a line.

    Raises:
        EasyCoreError: the file is none of these, or names a class twice.
    """
    text = paths.read_bytes(path).decode(errors="replace")
    try:
        content = json.loads(text)
    except ValueError:
        content = [line.strip() for line in text.splitlines() if line.strip()]
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names:
        raise EasyCoreError(
            f'{path} names no classes; allowed are a JSON list, {{"classes": [...]}} or one name a line'
        )
    names = [str(name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EasyCoreError(f"{path} names {twice[0]} twice; every class needs a name of its own")
    return names
