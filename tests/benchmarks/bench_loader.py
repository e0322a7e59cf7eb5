"""Images per second that loaders bring to a consumer that does nothing, on the same photographs and cores.

    python tests/benchmarks/bench_loader.py --folder /tmp/photos [--images 8000] [--cores 2] [--only ours limit]

Photographs of about 420 × 420 pixels are made in ``--folder``, once, in each loader's own format. Every loader gives
shuffled batches of 256 uint8 views (shorter side 256, centre 224) and uses libjpeg-turbo: ours as it is, the others
torchvision's ``decode_jpeg`` and antialiased resizing of uint8 tensors, faster than what they decode with by default.
``limit`` is our own decoding of bytes in memory, in a bare loop on as many processes. A rate counts the images after
the first batch. Stall: share of the time that a consumer waits which takes images 1.2 times more slowly than our
loader gives them. Loaders that are not installed are left out.
"""

import argparse
import io
import logging
import os
import statistics
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader

from easycore_ray.data.views import center_view

BATCH = 256
RESIZE, CROP = 256, 224
NUM_CLASSES = 10
FILES = 16
HEADROOM = 1.2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="where photographs are made and kept")
    parser.add_argument("--images", type=int, default=8000, help="number of photographs")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores for all of a loader")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; medians are printed")
    parser.add_argument("--only", nargs="*", default=list(LOADERS), help="loaders to measure")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    torch.set_num_threads(1)
    folder = Path(options.folder)
    make_photographs(folder / "jpeg", options.images)
    start_ours(folder, options.cores)
    found: dict[str, list[tuple[float, float]]] = {}
    # In turns, so that a drifting machine meets all of them.
    for _ in range(options.repeats):
        for name in options.only:
            try:
                found.setdefault(name, []).append(LOADERS[name](folder, options.cores))
            except ImportError as error:
                print(f"{name}: left out, {error}", flush=True)
    rates = {name: statistics.median(rate for rate, _ in runs) for name, runs in found.items() if runs}
    limit = rates.get("limit")
    print(f"{options.images} photographs, {options.cores} cores, medians of {options.repeats}")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        first = [f"{seconds:.1f}" for _, seconds in found[name]]
        share = f"{rate / limit:5.2f} of the limit" if limit else ""
        print(f"{name:12s} {rate:8.0f} images/s  {share}  first batch after {', '.join(first)} s")
    if "ours" in rates:
        stalls = [stall_share(folder, rates["ours"] / HEADROOM) for _ in range(options.repeats)]
        print(f"stall share at 1/{HEADROOM} of our rate: {statistics.median(stalls):.1%}")


def measure(batches: Iterable[Any], size: Any = len) -> tuple[float, float]:
    """Images per second after the first batch, and seconds until it."""
    started, count = time.perf_counter(), 0
    iterator = iter(batches)
    next(iterator)
    first = time.perf_counter()
    for batch in iterator:
        count += size(batch)
    return count / (time.perf_counter() - first), first - started


# ---------------------------------------------------------------- photographs


def make_photographs(folder: Path, count: int) -> None:
    """CLASS/NUMBER.jpg: smooth noise, quality 92; of 200 pictures, each file with a comment of its own."""
    if len(list(folder.glob("*/*.jpg"))) == count:
        return
    contents = [_photograph(seed) for seed in range(min(count, 200))]
    for number in range(count):
        path = folder / str(number % NUM_CLASSES) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = contents[number % len(contents)]
        comment = b"\xff\xfe\x00\x0a" + b"%08d" % number
        path.write_bytes(content[:2] + comment + content[2:])


def _photograph(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(380, 461, 2))
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        noise = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += 0.75**octave * np.stack([np.asarray(layer) for layer in layers], axis=-1)
    total = (total - total.mean()) / total.std() * 55 + 120
    buffer = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "jpeg").glob("*/*.jpg"))


def _label(path: Path) -> int:
    return int(path.parent.name)


# ---------------------------------------------------------------- ours


def start_ours(folder: Path, cores: int) -> None:
    """Start Ray and import the photographs, once."""
    import ray

    from easycore_ray.data.ingest.pipeline import prepare

    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not (folder / "ours" / "manifest.json").exists():
        shape = {"image_size": CROP, "resize_size": RESIZE, "store": "encoded", "val_fraction": 0, "test_fraction": 0}
        prepare(source=str(folder / "jpeg"), out=str(folder / "ours"), **shape)


def our_batches(folder: Path, epoch: int) -> Iterator[Any]:
    """Batches of one epoch of a worker that streams."""
    from easycore_ray.data.dataset import open_dataset
    from easycore_ray.data.stream import place_rows
    from easycore_ray.engine.loader import StreamLoader
    from easycore_ray.engine.segments import Segments

    dataset = open_dataset(str(folder / "ours"))
    segments = Segments(dataset.num_rows("train"), BATCH, 65_536)
    loader = StreamLoader(place_rows(dataset, "train", None), dataset, segments=segments, seed=0)
    for segment in range(segments.count):
        yield from loader.shuffled(epoch, segment)


def ours(folder: Path, cores: int) -> tuple[float, float]:
    """Ray Data tasks and a shuffle buffer."""
    del cores
    return measure(our_batches(folder, time.time_ns() % 1000 + 1), lambda batch: len(batch.labels))


def stall_share(folder: Path, rate: float) -> float:
    """Share of the time after the first batch that a consumer of this rate waits, in images per second."""
    batches = our_batches(folder, 1)
    next(batches)
    started, waited = time.perf_counter(), 0.0
    due = started
    while True:
        due += BATCH / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        asked = time.perf_counter()
        if next(batches, None) is None:
            return waited / (asked - started)
        late = time.perf_counter() - asked
        waited += late
        due += late


def limit(folder: Path, cores: int) -> tuple[float, float]:
    """Decode and resize files that are in memory."""
    parts = [list(islice(_files(folder), 0, 4000))[core::cores] for core in range(cores)]
    with ProcessPoolExecutor(cores) as pool:
        rates = list(pool.map(_decode_all, parts))
    return sum(rates), 0.0


def _decode_all(paths: list[Path]) -> float:
    torch.set_num_threads(1)
    contents = [path.read_bytes() for path in paths]
    center_view(contents[0], CROP, RESIZE)
    started = time.perf_counter()
    for content in contents:
        center_view(content, CROP, RESIZE)
    return len(contents) / (time.perf_counter() - started)


# ---------------------------------------------------------------- others


def decode(content: bytes) -> torch.Tensor:
    """The same view by torchvision."""
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2.functional import center_crop, resize

    image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return center_crop(resize(image, [RESIZE], antialias=True), [CROP, CROP])


def _loader(dataset: Any, cores: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, BATCH, num_workers=cores, worker_init_fn=_one_thread, **options)


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)


def _first(batch: Any) -> int:
    return len(batch[0])


def image_folder(folder: Path, cores: int) -> tuple[float, float]:
    """Torchvision's ImageFolder and torch's DataLoader."""
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder / "jpeg"), loader=lambda path: decode(Path(path).read_bytes()))
    return measure(_loader(data, cores, shuffle=True), _first)


def webdataset(folder: Path, cores: int) -> tuple[float, float]:
    """Tar files, shuffled in a buffer."""
    import webdataset as wds

    tars = folder / "tars"
    if not tars.exists():
        tars.mkdir()
        paths = np.random.default_rng(0).permutation(np.array(_files(folder), dtype=object))
        for number, part in enumerate(np.array_split(paths, FILES)):
            with tarfile.open(tars / f"{number:05d}.tar", "w") as tar:
                for path in part:
                    tar.add(path, f"{path.stem}.jpg")
                    label = str(_label(path)).encode()
                    info = tarfile.TarInfo(f"{path.stem}.cls")
                    info.size = len(label)
                    tar.addfile(info, io.BytesIO(label))
    data = wds.WebDataset(str(tars / f"{{00000..{FILES - 1:05d}}}.tar"), shardshuffle=FILES)
    data = data.shuffle(1000).to_tuple("jpg", "cls").map_tuple(decode, int).batched(BATCH)
    batches = wds.WebLoader(data, batch_size=None, num_workers=cores, worker_init_fn=_one_thread)
    return measure(batches, _first)


def hugging_face(folder: Path, cores: int) -> tuple[float, float]:
    """Parquet files of datasets, streamed and shuffled in a buffer."""
    from datasets import load_dataset

    files = folder / "parquet"
    if not files.exists():
        files.mkdir()
        paths = np.random.default_rng(0).permutation(np.array(_files(folder), dtype=object))
        for number, part in enumerate(np.array_split(paths, FILES)):
            columns = {"image": [path.read_bytes() for path in part], "label": [_label(path) for path in part]}
            pq.write_table(pa.table(columns), files / f"{number:05d}.parquet", row_group_size=100)
    data = load_dataset("parquet", data_files=str(files / "*.parquet"), split="train", streaming=True)
    data = data.shuffle(seed=0, buffer_size=1000).map(lambda row: {"image": decode(row["image"])})
    collate = lambda rows: (torch.stack([row["image"] for row in rows]), [row["label"] for row in rows])  # noqa: E731
    return measure(_loader(data, cores, collate_fn=collate), _first)


def mosaic(folder: Path, cores: int) -> tuple[float, float]:
    """Shards of MosaicML's streaming."""
    from streaming import MDSWriter, StreamingDataset

    class Photographs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            row = super().__getitem__(index)
            return decode(row["image"]), row["label"]

    out = folder / "mds"
    if not out.exists():
        with MDSWriter(out=str(out), columns={"image": "bytes", "label": "int"}) as writer:
            for path in _files(folder):
                writer.write({"image": path.read_bytes(), "label": _label(path)})
    return measure(_loader(Photographs(local=str(out), shuffle=True, batch_size=BATCH), cores), _first)


LOADERS = {
    "limit": limit,
    "ours": ours,
    "torchvision": image_folder,
    "webdataset": webdataset,
    "datasets": hugging_face,
    "streaming": mosaic,
}


if __name__ == "__main__":
    main()
