"""Damaged inputs: every one is read as what it was, or refused by an error that names the file.

Small sources of every layout and a checkpoint are damaged by seed, thousands of times: flipped bits, cuts, runs of
zeros, swapped, repeated and moved parts, repeated and reordered members of archives. Each is read in this process by
the functions that ``prepare`` and ``evaluate`` read with. What a reader cannot tell, since the file has no checksum
for it and is as whole as any other, is counted apart, by what has changed; where a format has the means to tell,
nothing may change without an error.
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from easycore_ray.data.ingest import readers, sources, splits
from easycore_ray.data.ingest.remarks import count_remarks, describe_remarks
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.storage.errors import EasyCoreError
from tests import artifacts

DAMAGES = 6000
SAMPLES = 12
CLASSES = ["cat", "dog", "emu"]
_BLOCK = 512


class Content(NamedTuple):
    """What a reader found: samples as (key, label, hash of the pixels) in order, names of the classes, remarks."""

    samples: tuple[tuple[str, int, str], ...]
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()


class Input(NamedTuple):
    """An input: its folder, the file in it that is damaged, and what reads it.

    Attributes:
        tells: what must not change without an error: ``samples`` (their number), ``keys``, ``labels``, ``classes``,
            ``pixels``, ``pictures exchanged`` (all are there, under other keys), ``order``.
    """

    folder: Path
    file: str
    read: Callable[[Path], Content]
    tells: frozenset[str]


EVERYTHING = frozenset({"samples", "keys", "labels", "classes", "pixels", "pictures exchanged", "order"})


def picture(number: int, form: str = "PNG") -> bytes:
    """A random image file."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write_tar(path: Path) -> None:
    """A shard with labels in .cls and .json."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for number in range(SAMPLES):
            label = number % len(CLASSES)
            said = ("cls", str(label)) if number % 2 else ("json", json.dumps({"label": CLASSES[label]}))
            for suffix, content in (("png", picture(number)), (said[0], said[1].encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, *, checksums: bool) -> None:
    """Two row groups, as the datasets library writes them."""
    images = [{"bytes": picture(number), "path": f"{number:04d}.png"} for number in range(SAMPLES)]
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": [number % len(CLASSES) for number in range(SAMPLES)]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7, write_page_checksum=checksums)


def write_folders(root: Path, form: str) -> None:
    """CLASS/0000.png."""
    for number in range(SAMPLES):
        path = root / CLASSES[number % len(CLASSES)] / f"{number:04d}.{form.lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number, form))


def write_inputs(root: Path) -> dict[str, Input]:
    """All inputs, by name."""
    made = {}
    for name, file, tells in (
        ("tar", "train.tar", EVERYTHING),
        ("tar.gz", "train.tar.gz", EVERYTHING),
        ("parquet", "train.parquet", {"pixels", "samples"}),
        ("parquet with checksums", "train.parquet", {"pixels", "samples"}),
        ("folder of PNG", "cat/0003.png", EVERYTHING),
        ("folder of JPEG", "cat/0003.jpeg", EVERYTHING - {"pixels"}),
        ("safetensors", "model.safetensors", EVERYTHING),
    ):
        folder = root / name.replace(" ", "_") / "source"
        folder.mkdir(parents=True)
        if name.startswith("tar"):
            write_tar(folder / file)
            (folder / "classes.json").write_text(json.dumps(CLASSES))
        elif name.startswith("parquet"):
            write_parquet(folder / file, checksums="checksums" in name)
        elif name.startswith("folder"):
            write_folders(folder, name.split()[-1])
        else:
            dataset = artifacts.make_image_dataset(root / "dataset", [0, 1, 2] * 4)
            artifacts.make_checkpoint(folder, dataset.path)
        made[name] = Input(folder, file, read_weights if name == "safetensors" else read_source, frozenset(tells))
    return made


def read_source(folder: Path) -> Content:
    """A source as ``prepare`` reads it, up to the point where nothing but splits and shards is left to do."""
    listed = sources.list_source(str(folder))
    pieces = [piece for split in splits.SPLITS for piece in listed.pieces.get(split, [])]
    tables = [table for number, piece in enumerate(pieces) for table in readers.check(number, piece, listed.classes)]
    rows = pa.concat_tables(tables)
    found = rows.to_pylist()
    for row in found:
        if row["problem"]:
            raise EasyCoreError(f"{row['where']}: {row['problem']}")
    sizes = [(row["height"], row["width"], row["channels"]) for row in found]
    for row, size in zip(found, sizes, strict=True):
        if size != sizes[0]:
            raise EasyCoreError(f"the images differ in size: {found[0]['where']} and {row['where']}")
    labels = rows["label"].to_numpy()
    names = splits.class_names(labels, np.zeros(len(found), np.int8), listed.classes)
    samples = tuple((row["key"], row["label"], hashlib.sha256(row["pixels"]).hexdigest()) for row in found)
    return Content(samples, tuple(names), tuple(describe_remarks(count_remarks(rows))))


def read_weights(folder: Path) -> Content:
    """A checkpoint as ``evaluate`` reads it: a parameter for a sample."""
    artifact, model = open_checkpoint(str(folder))
    entries = model.state_dict().items()
    samples = tuple((name, 0, hashlib.sha256(value.numpy().tobytes()).hexdigest()) for name, value in entries)
    return Content(samples, tuple(artifact.classes))


def length(rng: random.Random, most: int) -> int:
    """1 .. most, small ones as often as large ones."""
    return max(1, min(most, int(most ** rng.random())))


def part(rng: random.Random, content: bytes) -> tuple[int, int]:
    """(start, end) of a part of a file; of whole blocks half of the time."""
    step = rng.choice([1, _BLOCK]) if len(content) > 4 * _BLOCK else 1
    size = length(rng, len(content) // step // 2)
    start = rng.randrange(len(content) // step - size + 1)
    return start * step, (start + size) * step


def flip(rng: random.Random, content: bytes) -> bytes:
    """One to eight bits."""
    damaged = bytearray(content)
    for _ in range(length(rng, 8)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, content: bytes) -> bytes:
    """The end is missing, sometimes from the start of a block."""
    return content[: part(rng, content)[rng.randrange(2)]]


def zeros(rng: random.Random, content: bytes) -> bytes:
    """A run of zeros, sometimes up to the end."""
    start, end = part(rng, content)
    end = rng.choice([end, end, len(content)])
    return content[:start] + bytes(end - start) + content[end:]


def swap(rng: random.Random, content: bytes) -> bytes:
    """Two parts of equal length change places."""
    start, end = part(rng, content)
    other = rng.randrange(len(content) - (end - start) + 1)
    if start % _BLOCK == 0 and end % _BLOCK == 0:
        other -= other % _BLOCK
    damaged = bytearray(content)
    damaged[start:end], damaged[other : other + end - start] = content[other : other + end - start], content[start:end]
    return bytes(damaged)


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A part is there twice."""
    start, end = part(rng, content)
    return content[:end] + content[start:end] + content[end:]


def move(rng: random.Random, content: bytes) -> bytes:
    """A part lies elsewhere."""
    start, end = part(rng, content)
    rest = content[:start] + content[end:]
    at = rng.randrange(len(rest) + 1)
    if start % _BLOCK == 0 and end % _BLOCK == 0:
        at -= at % _BLOCK
    return rest[:at] + content[start:end] + rest[at:]


def members(archive: bytes) -> tuple[list[bytes], bytes]:
    """Header and content of each member of a plain tar, and what is behind them."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        starts = [member.offset for member in tar.getmembers()]
        ends = [*starts[1:], tar.offset]
    return [archive[start:end] for start, end in zip(starts, ends, strict=True)], archive[ends[-1] :]


def of_members(change: Callable[[random.Random, list[bytes]], None]) -> Callable[[random.Random, bytes], bytes]:
    """A damage to the list of an archive's members; the archive is whole afterwards, and so is its gzip."""

    def damage(rng: random.Random, content: bytes) -> bytes:
        packed = content.startswith(b"\x1f\x8b")
        found, rest = members(gzip.decompress(content) if packed else content)
        change(rng, found)
        archive = b"".join(found) + rest
        return gzip.compress(archive, 1) if packed else archive

    return damage


def repeat_member(rng: random.Random, found: list[bytes]) -> None:
    """One member is there again somewhere."""
    found.insert(rng.randrange(len(found) + 1), rng.choice(found))


def reorder_members(rng: random.Random, found: list[bytes]) -> None:
    """Two members change places, or all do."""
    if rng.random() < 0.2:
        rng.shuffle(found)
        return
    one, other = rng.sample(range(len(found)), 2)
    found[one], found[other] = found[other], found[one]


_OF_BYTES = {"bits": flip, "cut": cut, "zeros": zeros, "swap": swap, "repeat": repeat, "move": move}
_OF_MEMBERS = {"repeated member": of_members(repeat_member), "reordered members": of_members(reorder_members)}


def changes(before: Content, after: Content) -> str:
    """What differs first; one of ``EVERYTHING``."""
    if len(before.samples) != len(after.samples):
        return "samples"
    for place, name in ((0, "keys"), (1, "labels"), (2, "pixels")):
        one, other = (sorted((sample[0], sample[place]) for sample in found.samples) for found in (before, after))
        if one != other:
            hashes = [sorted(sample[2] for sample in found.samples) for found in (before, after)]
            return "pictures exchanged" if name == "pixels" and hashes[0] == hashes[1] else name
    return "order" if before.samples != after.samples else "classes"


def verdict(entry: Input, whole: Content) -> str:
    """What a reader makes of a damaged input: ``undamaged``, ``refused``, ``said``, or what has changed silently.

    An error that does not name the file, or is none of ours, is given as its text.
    """
    try:
        found = entry.read(entry.folder)
    except EasyCoreError as error:
        # Samples of a Parquet file bear names of their own, and so does the file of a folder.
        named = Path(entry.file).name in str(error) or str(entry.folder) in str(error)
        return "refused" if named else f"names no file: {error}"
    except Exception:
        return f"traceback: {traceback.format_exc()[-1500:]}"
    if found == whole:
        return "undamaged"
    return "said" if found.remarks != whole.remarks else changes(whole, found)


def is_whole(archive: bytes) -> bool:
    """True for a plain tar without a fault: by the letter of POSIX, so that no reader can tell that it was damaged."""
    at = 0
    while any(block := archive[at : at + _BLOCK]):
        if len(block) < _BLOCK or sum(block[:148]) + 8 * ord(" ") + sum(block[156:]) != octal(block[148:156]):
            return False
        at += _BLOCK - (-octal(block[124:136]) // _BLOCK) * _BLOCK
    return not any(archive[at:]) and len(archive) - at >= 2 * _BLOCK


def octal(field: bytes) -> int:
    """A number in a tar header; -1 for what is none."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits and set(digits) <= set(b"01234567") else -1


def footer(parquet: bytes) -> bytes:
    """The end of a Parquet file, which has no checksum: schema, statistics, names of the classes."""
    return parquet[-8 - int.from_bytes(parquet[-8:-4], "little") :]


def can_be_told(kind: str, tells: frozenset[str], found: str, before: bytes, after: bytes) -> bool:
    """Whether a reader could have noticed a change that it did not report.

    Args:
        kind: name of the input.
        tells: see ``Input``.
        found: see ``verdict``.
        before: content of the file.
        after: content of the damaged file.
    """
    if found not in EVERYTHING:  # no change but a bad error
        return True
    if kind == "tar" and found != "pixels":
        return not is_whole(after)
    return found in tells or (kind == "parquet with checksums" and after.endswith(footer(before)))


def run_case(seed: int, damages: int = DAMAGES) -> dict[str, Any]:
    """Damage the inputs in turn, by every kind of damage.

    Returns:
        The number of damages by verdict, and those that cannot be told by input, damage and what has changed.

    Raises:
        AssertionError: an error names no file or is none of ours, or something changed silently that the format has
            the means to tell.
    """
    rng = random.Random(seed)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    silent: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what it meets in damaged files
        inputs = write_inputs(Path(name))
        contents = {kind: (entry.folder / entry.file).read_bytes() for kind, entry in inputs.items()}
        wholes = {kind: entry.read(entry.folder) for kind, entry in inputs.items()}
        for number in range(damages):
            kind, entry = list(inputs.items())[number % len(inputs)]
            known = _OF_BYTES | (_OF_MEMBERS if kind.startswith("tar") else {})
            how = rng.choice(list(known))
            damaged = known[how](rng, contents[kind])
            (entry.folder / entry.file).write_bytes(damaged)
            found = verdict(entry, wholes[kind])
            (entry.folder / entry.file).write_bytes(contents[kind])
            if found in ("undamaged", "refused", "said"):
                counts[kind][found] += 1
            elif (found == "order" and how in _OF_MEMBERS) or not can_be_told(
                kind, entry.tells, found, contents[kind], damaged
            ):
                counts[kind]["cannot be told"] += 1
                silent[f"{kind}, {how}: {found}"] += 1
            else:
                wrong.append(f"damage {number} of seed {seed} ({kind}, {how}): {found}")
    assert not wrong, "\n".join(wrong)
    totals: Counter[str] = sum(counts.values(), Counter())
    by_input = {kind: dict(found) for kind, found in counts.items()}
    return {
        "damages": damages,
        **totals,
        "by input": by_input,
        "cannot be told, by damage": dict(sorted(silent.items())),
    }
