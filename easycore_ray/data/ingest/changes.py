"""Whether a source is still what was imported: a record of its files, and their comparison with what is there now.

Takes names, sizes and times of change; object stores' etags as well, where the files are few enough to ask for them
one by one. No file is read.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest.class_lists import classes_file_beside
from easycore_ray.data.ingest.listing import FILES_SCHEMA, list_tree, to_table
from easycore_ray.data.ingest.sources import find_files, is_path
from easycore_ray.runtime.console import say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

SOURCE_FILES = "source_files.arrow"
SOURCE_SCHEMA = pa.schema({
    "path": pa.string(),
    "size": pa.int64(),
    # Nanoseconds since 1970, by the clock of the disk or store.
    "modified": pa.int64(),
    # "" where the store has none, or was not asked.
    "etag": pa.string(),
})  # fmt: skip

# Each takes a request of its own: with 32 at a time half a minute of a store's usual answers.
_MOST_ETAGS = 20_000
_ROWS_AT_ONCE = 1 << 16


def write_source_files(files: pa.Table, folder: str) -> dict[str, Any]:
    """Write the record of a source beside its dataset.

    Args:
        files: as listed before the import (``listing.FILES_SCHEMA``).
        folder: of the dataset.

    Returns:
        What the manifest says of it: number of ``files``, their ``bytes``, and a ``digest`` of the record.
    """
    table = _with_etags(files)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SOURCE_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    paths.write_bytes(paths.join(folder, SOURCE_FILES), sink.getvalue())
    return {"files": table.num_rows, "bytes": pc.sum(table["size"]).as_py() or 0, "digest": _digest(table)}


def _digest(table: pa.Table) -> str:
    """Hash of all rows, some at a time."""
    digest = hashlib.sha256()
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        columns = table.slice(start, _ROWS_AT_ONCE).to_pydict().values()
        digest.update(content_hash(*("\0".join(map(str, column)) for column in columns)).encode())
    return digest.hexdigest()


def check_unchanged(config: PrepareConfig, dataset: Artifact) -> None:
    """Compare the source with what it was when the dataset was imported.

    Datasets without a record, of an earlier release, and sources that come with a library are passed over. So is,
    with a word, a source that is gone altogether.

    Raises:
        EasyCoreError: how many files are new, gone or changed.
    """
    if not dataset.manifest.get("source_files"):
        return
    if is_path(config.source) and not paths.exists(source := paths.absolute(config.source)):
        say(f"prepare: {source} is not there any more; {dataset.path} is what was imported from it")
        return
    with pa.ipc.open_file(paths.read_bytes(paths.join(dataset.path, SOURCE_FILES))) as reader:
        before = reader.read_all()
    after = _with_etags(_files_now(config, before["path"], named=bool(dataset.manifest.get("names_from"))))
    both = before.join(after, "path", join_type="inner", right_suffix="_now")
    new, gone = len(after) - len(both), len(before) - len(both)
    changed = pc.sum(_differs(both)).as_py() or 0
    if new or gone or changed:
        raise EasyCoreError(
            f"the source has changed since {dataset.path} was imported: {new:,} new, {gone:,} gone and {changed:,} "
            "changed files; pass --overwrite to import again, or --no-source-check to reuse the dataset as it is"
        )


def _files_now(config: PrepareConfig, before: pa.ChunkedArray, *, named: bool) -> pa.Table:
    """What an import would read now, as ``listing.FILES_SCHEMA``."""
    found = [FILES_SCHEMA.empty_table()]
    lists = [] if config.classes is None else [paths.absolute(config.classes)]
    for place in (config.source, config.test_source):
        if place is None or not is_path(place) or not paths.exists(paths.absolute(place)):
            continue
        tree, files, _ = find_files(paths.absolute(place), config.format)
        found.append(to_table(tree.root, files))
        beside = classes_file_beside(tree.root)
        # One that is new counts where there were no names before.
        if beside is not None and (not named or pc.any(pc.equal(before, beside)).as_py()):
            lists.append(beside)
    for path in dict.fromkeys(lists):
        if paths.exists(path):
            tree = list_tree(path)
            found.append(to_table(tree.root, tree.files))
    return pa.concat_tables(found)


def _with_etags(files: pa.Table) -> pa.Table:
    """The files as a table of ``SOURCE_SCHEMA``, sorted by path, each once."""
    files = files.take(pc.sort_indices(files, sort_keys=[("path", "ascending")])).combine_chunks()
    is_first = pa.chunked_array([[True], pc.not_equal(files["path"][1:], files["path"][:-1]).combine_chunks()])
    files = files.filter(is_first.slice(0, len(files)))
    etags = [""] * len(files)
    remote = [number for number, path in enumerate(files["path"]) if paths.is_remote(path.as_py())]
    if len(remote) <= _MOST_ETAGS:
        with ThreadPoolExecutor(32) as pool:
            found = pool.map(_etag, [files["path"][number].as_py() for number in remote])
            for number, etag in zip(remote, found, strict=True):
                etags[number] = etag
    return files.append_column("etag", pa.array(etags, pa.string())).cast(SOURCE_SCHEMA)


def _etag(path: str) -> str:
    """What the store says of the content of an object; "" if it says nothing."""
    filesystem, inner = paths.locate(path)
    try:
        with filesystem.open_input_file(inner) as stream:
            metadata = stream.metadata() or {}
    except OSError:  # gone meanwhile, or not to be read: the import will say so
        return ""
    return next((value.decode() for name, value in metadata.items() if name.lower() == "etag"), "")


def _differs(both: pa.Table) -> pa.ChunkedArray:
    """Whether each file is another: by etags where both have one, else by times."""
    has_etags = pc.and_(pc.not_equal(both["etag"], ""), pc.not_equal(both["etag_now"], ""))
    other = pc.if_else(
        has_etags,
        pc.not_equal(both["etag"], both["etag_now"]),
        pc.not_equal(both["modified"], both["modified_now"]),
    )
    return pc.or_(other, pc.not_equal(both["size"], both["size_now"]))
