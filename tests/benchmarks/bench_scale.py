"""A whole pipeline on many images: images/s, peak memory of every process, object store, disk, stage by stage.

    python tests/benchmarks/bench_scale.py --folder /tmp/bench_scale --images 1000000 --side 64

Makes its own images (JPEGs of random smooth patterns, ten classes, in tar files), then runs the commands as a user
would: ``prepare``, one scored epoch of a small network that streams, the reduction, ``coreset`` with the half written
as a dataset of its own, and the evaluation of 1,000 images. With ``--thin`` what a stage no longer needs is deleted
after it. Prints a table and writes ``result.json``.
"""

import argparse
import json
import os
import shutil
import sys
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from processes import Usage, run, size_of

_PER_TAR = 5000
_CLASSES = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where all is written; what is there is reused")
    parser.add_argument("--images", type=int, default=100_000, help="training and test images together")
    parser.add_argument("--side", type=int, default=64, help="width and height in pixels, the image size of the run")
    parser.add_argument("--store", default="encoded", help="how prepare stores them")
    parser.add_argument("--model", default="cnn", help="network that is scored")
    parser.add_argument("--width", type=int, default=4, help="its width")
    parser.add_argument("--score-pass", default="fused+eval", help="of score: fused leaves the exact pass out")
    parser.add_argument("--thin", action="store_true", help="delete what no later stage reads")
    options = parser.parse_args()
    source = options.folder / "source"
    make_source(source, options.images, options.side)
    # Short, for sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as ray_folder:
        os.environ |= {"RAY_TMPDIR": ray_folder, "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
        rows = run_stages(options, source, Path(ray_folder))
    result = {"images": options.images, "side": options.side, "store": options.store, "stages": rows}
    (options.folder / "result.json").write_text(json.dumps(result, indent=1))
    print_table(rows)


def run_stages(options: argparse.Namespace, source: Path, ray_folder: Path) -> list[dict]:
    """Run every stage; a row of figures for each."""
    out, rows = options.folder / "out", []
    shutil.rmtree(out, ignore_errors=True)
    source_bytes = size_of(source)

    def stage(name: str, images: int, *arguments: str) -> None:
        program = str(Path(sys.executable).with_name("easycore"))
        usage = run([program, *arguments], watched=out, ray_folder=ray_folder)
        rows.append(as_row(name, images, usage))
        print(f"{name}: {rows[-1]}", flush=True)

    count, data = options.images, f"--dataset={out / 'dataset'}"
    stage("prepare", count, "prepare", f"--source={source}", "--format=webdataset", f"--out={out / 'dataset'}",
          f"--image-size={options.side}", f"--store={options.store}", "--test-fraction=0.02")  # fmt: skip
    rows[0]["source_mib"] = round(source_bytes / 2**20)
    if options.thin:
        shutil.rmtree(source)
    # A network of the user's own, such as patch_network:make, has no width.
    network = [f"--model={options.model}", *([] if ":" in options.model else [f"--width={options.width}"])]
    scored = [*network, "--epochs=1", "--cache-gib=0", f"--score-pass={options.score_pass}"]
    stage("score, one epoch", count, "score", data, f"--out={out / 'scores'}", *scored)
    stage("reduce", count, "reduce", f"--scores={out / 'scores'}", f"--out={out / 'reduced'}")
    stage("coreset, materialized", count // 2, "coreset", data, f"--scores={out / 'scores'}", "--materialize",
          f"--out={out / 'coreset'}")  # fmt: skip
    if options.thin:
        shutil.rmtree(out / "scores" / "table", ignore_errors=True)
    trained = ["--dataset", str(out / "coreset" / "dataset"), "--steps=50", *network, "--cache-gib=0"]
    stage("train, 50 steps", 50 * 128, "train", *trained, f"--out={out / 'model'}")
    stage("evaluate", 1000, "evaluate", data, f"--checkpoint={out / 'model'}", "--num-eval-samples=1000",
          f"--out={out / 'evaluation'}")  # fmt: skip
    return rows


def as_row(name: str, images: int, usage: Usage) -> dict:
    """Figures of a stage, in MiB and seconds."""
    return {
        "stage": name,
        "seconds": round(usage.seconds, 1),
        "images_per_second": round(images / usage.seconds),
        "driver_mib": round(usage.processes["driver"]),
        "largest": {
            kind: round(size)
            for kind, size in sorted(usage.processes.items(), key=lambda entry: -entry[1])
            if kind != "driver" and size > 100
        },
        "object_store_mib": round(usage.object_store),
        "spilled_mib": round(usage.spilled),
        "disk_mib": round(usage.disk),
    }


def print_table(rows: list[dict]) -> None:
    """One line a stage."""
    print(
        f"{'stage':24}{'seconds':>9}{'images/s':>10}{'driver':>9}{'store':>8}{'spilled':>9}{'disk':>9}  largest others"
    )
    for row in rows:
        others = ", ".join(f"{kind} {size}" for kind, size in list(row["largest"].items())[:3])
        print(f"{row['stage']:24}{row['seconds']:9}{row['images_per_second']:9,}{row['driver_mib']:9,}"
              f"{row['object_store_mib']:9,}{row['spilled_mib']:9,}{row['disk_mib']:9,}  {others}")  # fmt: skip
    print("memory, object store and disk in MiB, peaks; private memory of any one process of a kind")


def make_source(folder: Path, images: int, side: int) -> None:
    """Tar files of 5,000 JPEGs with their labels, made by all cores; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, images, _PER_TAR)
    work = [(folder / f"images-{start:09d}.tar", start, min(images, start + _PER_TAR), side) for start in starts]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_make_tar, *zip(*work, strict=True)))


def _make_tar(path: Path, start: int, stop: int, side: int) -> None:
    if path.exists():
        return
    rng = np.random.default_rng(start)
    with tarfile.open(path.with_suffix(".tmp"), "w") as archive:
        for number in range(start, stop):
            _add_file(archive, f"{number:09d}.jpg", _jpeg(rng, side, number % _CLASSES))
            _add_file(archive, f"{number:09d}.cls", str(number % _CLASSES).encode())
    path.with_suffix(".tmp").rename(path)


def _jpeg(rng: np.random.Generator, side: int, label: int) -> bytes:
    """A smooth random pattern whose mean colour hints at its class."""
    coarse = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    coarse[..., label % 3] //= 2
    buffer = BytesIO()
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, BytesIO(content))


if __name__ == "__main__":
    main()
