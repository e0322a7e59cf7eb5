"""Files of a coreset for use elsewhere: ids as NumPy, source keys as text."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.storage import paths


def write_exports(out: str, files: Sequence[dict[str, Any]]) -> str:
    """Write ``sample_ids.npy`` and ``keys.txt``, a stretch of rows at a time; returns the hash of the ids."""
    count = sum(entry["rows"] for entry in files)
    # As ``content_hash`` of all ids would be.
    digest = hashlib.sha256((8 * count).to_bytes(8, "little"))
    header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    with (
        paths.staged(paths.join(out, "sample_ids.npy")) as ids_file,
        paths.staged(paths.join(out, "keys.txt")) as keys_file,
        Path(ids_file).open("wb") as ids_out,
        Path(keys_file).open("wb") as keys_out,
    ):
        np.lib.format.write_array_header_1_0(ids_out, header)
        for ids, keys in _ids_and_keys(out, files):
            content = ids.astype("<i8", copy=False).tobytes()
            digest.update(content)
            ids_out.write(content)
            keys_out.write(("\n".join(keys.to_pylist()) + "\n").encode())
        ids_out.flush()
        keys_out.flush()
    return digest.hexdigest()


def _ids_and_keys(out: str, files: Sequence[dict[str, Any]]) -> Iterator[tuple[NDArray[np.int64], pa.ChunkedArray]]:
    for entry in files:
        filesystem, inner = paths.locate(paths.join(out, entry["path"]))
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["sample_id", "key"])
                yield rows["sample_id"].to_numpy(), rows["key"]
