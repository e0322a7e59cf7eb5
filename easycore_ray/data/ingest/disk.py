"""Whether the disk has room for what an import will write, before it writes."""

import shutil
from pathlib import Path

import pyarrow.compute as pc

from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.images import MAX_RAW_BYTES
from easycore_ray.data.ingest.readers import Source
from easycore_ray.runtime.console import say
from easycore_ray.storage import paths

_CHANNELS = 3


def warn_of_full_disk(source: Source, config: PrepareConfig, out: str) -> None:
    """Say so in a line where a local disk has less free than the import will write.

    That is about twice what is stored: staging files, then shards. Nothing is said of sources whose size is not known
    before they are read.
    """
    stored = estimate_stored_bytes(source, config)
    if stored is None or paths.is_remote(out):
        return
    free = shutil.disk_usage(_existing(Path(out))).free
    if free < 2 * stored:
        most = "at most " if config.store == "resized" else "about "
        say(
            f"prepare: the disk of {out} has {_gib(free)} free, and this import writes {most}{_gib(2 * stored)}: half "
            "of it to stage images, half as shards; make room, or choose another --out"
        )


def estimate_stored_bytes(source: Source, config: PrepareConfig) -> int | None:
    """Bytes of all images as they will be stored, as far as a listing tells; None if it does not."""
    image_bytes = None if config.image_size is None else _CHANNELS * config.image_size**2
    by_pixels = config.store == "pixels" or (
        config.store == "auto" and image_bytes is not None and image_bytes <= MAX_RAW_BYTES
    )
    if by_pixels and image_bytes is not None and source.total is not None:
        return source.total * image_bytes
    # Files are what is stored; decoded they are larger, so that this is the least.
    size: int | None = pc.sum(source.files["size"]).as_py()
    return size


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
