"""What an import takes: images/s, peak memory of driver and tasks, object store, spilled bytes, disk.

    python tests/benchmarks/bench_import.py --folder /tmp/bench_import --images 100000 [--tars] [--side 64]
    python tests/benchmarks/bench_import.py --folder /tmp/bench_import --gib 20 [--side 1200] --image-size 224

Makes its own source and keeps it: ``--images`` JPEGs of ``--side`` pixels, or as many as give ``--gib``, in class
folders or, with ``--tars``, in tar shards of ``--per-tar`` images. Then imports it in a process of its own, with an
object store of ``--object-store-gib``. Memory is the private memory of a process (RssAnon), as
``processes`` sees it four times a second; object store and spilled bytes are Ray's own figures.
"""

import argparse
import functools
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from tarfile import TarFile, TarInfo

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_CLASSES = 100
_PER_TASK = 2000
_EVERY_SECONDS = 0.25
# Patterns of the source, and the side of the random patch that makes each image its own.
_PATTERNS = 64
_PATCH = 16


def main() -> None:
    """Make the source, import it, print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where source and dataset are written")
    parser.add_argument("--images", type=int, default=20_000, help="number of images")
    parser.add_argument("--gib", type=float, help="size of the source instead, in GiB")
    parser.add_argument("--side", type=int, default=64, help="width and height of an image in pixels")
    parser.add_argument("--tars", action="store_true", help="tar shards instead of class folders")
    parser.add_argument("--per-tar", type=int, default=10_000, help="images in a tar shard")
    parser.add_argument("--image-size", type=int, help="of prepare")
    parser.add_argument("--store", default="auto", help="of prepare")
    parser.add_argument("--object-store-gib", type=float, default=1.0, help="size of Ray's object store")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="CPUs of Ray")
    parser.add_argument("--keep", action="store_true", help="keep the dataset")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(import_here(options)))
        return
    count = options.images
    if options.gib is not None:
        count = max(1, round(options.gib * 2**30 / len(jpeg(0, options.side))))
    source = source_folder(options, count)
    make_source(source, count, options)
    measure_import(options, count)


def source_folder(options: argparse.Namespace, count: int) -> Path:
    """Where the source of these options lies."""
    kind = f"tars-{options.per_tar}" if options.tars else "folders"
    return options.folder / f"source-{count}x{options.side}-{kind}"


def measure_import(options: argparse.Namespace, count: int) -> None:
    """Import in a process of its own and print its figures."""
    from processes import run, size_of

    out = options.folder / "dataset"
    shutil.rmtree(out, ignore_errors=True)
    source = source_folder(options, count)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as ray_folder:  # short, for sockets lie in it
        os.environ["RAY_TMPDIR"] = ray_folder
        command = [sys.executable, *sys.argv, "--one", f"--images={count}"]
        usage = run(command, watched=out, ray_folder=Path(ray_folder))
    *said, last = usage.output.strip().splitlines()
    ray = json.loads(last)
    print("\n".join(line for line in said if line.startswith(("check:", "write:", "prepare:"))))
    tasks = {kind: round(size) for kind, size in usage.processes.items() if kind in ("stage_piece", "write_shard")}
    figures = {
        "images": count,
        "source_mib": round(size_of(source) / 2**20),
        "dataset_mib": round(size_of(out) / 2**20),
        "seconds": round(ray["seconds"], 1),
        "images_per_second": round(count / ray["seconds"], 1),
        "driver_mib": round(usage.processes["driver"]),
        "tasks_mib": tasks,
        "object_store_peak_mib": ray["peak"],
        "object_store_written_mib": ray["written"],
        "spilled_mib": ray["spilled"],
        "disk_peak_mib": round(usage.disk),
    }
    print(json.dumps(figures, indent=1))
    if not options.keep:
        shutil.rmtree(out)


# ---------------------------------------------------------------- the import, in a process of its own


def import_here(options: argparse.Namespace) -> dict[str, float]:
    """Import with Ray started here; Ray's own figures of its object store, in MiB, and the seconds it took."""
    import ray

    from easycore_ray import prepare

    ray.init(
        num_cpus=options.cpus,
        object_store_memory=int(options.object_store_gib * 2**30),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    done, peak = threading.Event(), [0]
    watching = threading.Thread(target=_watch, args=(done, peak), daemon=True)
    watching.start()
    made = prepare(
        source=str(source_folder(options, options.images)),
        out=str(options.folder / "dataset"),
        image_size=options.image_size,
        store=options.store,
    )
    done.set()
    watching.join()
    stats = store_stats()
    return {
        "seconds": made.manifest["wall_seconds"],
        "peak": round(peak[0] / 2**20, 1),
        "written": round(stats.cumulative_created_bytes / 2**20, 1),
        "spilled": round(stats.spilled_bytes_total / 2**20, 1),
    }


def store_stats():
    """What Ray counts of its object store since it was started: bytes in use, created, spilled."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats


def _watch(done: threading.Event, peak: list[int]) -> None:
    while not done.wait(_EVERY_SECONDS):
        peak[0] = max(peak[0], store_stats().object_store_bytes_used)


# ---------------------------------------------------------------- the source


def make_source(folder: Path, count: int, options: argparse.Namespace) -> None:
    """All images, made by all cores; a source that is there is kept."""
    if (folder / ".whole").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step = options.per_tar if options.tars else _PER_TASK
    parts = [(folder, start, min(count, start + step), options.side) for start in range(0, count, step)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_make_tar if options.tars else _make_files, *zip(*parts, strict=True)))
    (folder / ".whole").touch()


def _make_files(folder: Path, start: int, stop: int, side: int) -> None:
    for number in range(start, stop):
        path = folder / f"class-{number % _CLASSES:03d}" / f"image-{number:08d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number, side))


def _make_tar(folder: Path, start: int, stop: int, side: int) -> None:
    with TarFile.open(folder / f"images-{start:08d}.tar", "w") as tar:
        for number in range(start, stop):
            for suffix, content in (("jpg", jpeg(number, side)), ("cls", str(number % _CLASSES).encode())):
                member = TarInfo(f"{number:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


def jpeg(number: int, side: int) -> bytes:
    """A pattern with as much detail as a photograph; no two are alike, but for a patch many look alike."""
    image = _pattern(number % _PATTERNS, side).copy()
    rng = np.random.default_rng(number)
    width = min(side, _PATCH)
    top, left = rng.integers(0, side - width + 1, 2)
    image[top : top + width, left : left + width] = rng.integers(0, 256, (width, width, 3), np.uint8)
    return simplejpeg.encode_jpeg(image, quality=85, colorsubsampling="420")


@functools.cache
def _pattern(number: int, side: int) -> NDArray[np.uint8]:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    tile = rng.integers(-12, 13, (min(side, 64), min(side, 64), 3), np.int16)
    noise = np.tile(tile, (side // len(tile) + 1, side // len(tile) + 1, 1))[:side, :side]
    return (smooth + noise).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
