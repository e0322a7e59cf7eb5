"""What an import did to a source's images beyond copying them: counted, kept in the manifest, and said at the end."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc


def count_remarks(rows: pa.Table) -> dict[str, int]:
    """The counts of ``describe_remarks``.

    Args:
        rows: ``piece``, ``archive``, ``rotated`` and ``several`` (see ``readers.CHECKED_SCHEMA``) of the samples that
            are imported.
    """
    joined = rows.filter(pc.greater(rows["archive"], 0))
    return {
        "rotated": pc.sum(rows["rotated"]).as_py() or 0,
        "several_frames": pc.sum(rows["several"]).as_py() or 0,
        "joined_archives": len(pc.unique(joined["piece"])),
    }


def describe_remarks(counts: Mapping[str, int]) -> list[str]:
    """The counts that are not 0, in words.

    Args:
        counts: ``rotated``: images turned or mirrored by their EXIF orientation. ``several_frames``: images of files
            with several frames or pages. ``joined_archives``: tar files of several archives.
    """
    words = {
        "rotated": "turned upright by EXIF",
        "several_frames": "with several frames or pages, of which the first was taken",
        "joined_archives": "tar files of several archives, all of them read",
    }
    return [f"{counts[name]:,} {text}" for name, text in words.items() if counts.get(name)]
