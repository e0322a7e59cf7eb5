"""Sources that have names instead of paths: ``digits``, and what torchvision can download.

Takes a name, gives a ``Source`` whose pieces hold their images. They are read in the process that asks for them, so
that a cluster's workers need neither the download nor a shared folder. What is too large for one process's memory is
imported from a path instead.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np

from easycore_ray.data.images import take_over
from easycore_ray.data.ingest.class_lists import name_labels
from easycore_ray.data.ingest.readers import Arrays, Piece, Source, Split
from easycore_ray.storage.errors import EasyCoreError

_ROWS_PER_PIECE = 1000

# What torchvision calls the splits of its datasets, where it is not "train" and "test".
_THREE_SPLITS: dict[Split, str] = {"train": "train", "val": "val", "test": "test"}
_SPLITS: dict[str, dict[Split, str]] = {
    "CLEVRClassification": {"train": "train", "test": "val"},
    "Country211": {"train": "train", "val": "valid", "test": "test"},
    "DTD": _THREE_SPLITS,
    "FGVCAircraft": _THREE_SPLITS,
    "Flowers102": _THREE_SPLITS,
    "Imagenette": {"train": "train", "test": "val"},
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "PCAM": _THREE_SPLITS,
    "Places365": {"train": "train-standard", "test": "val"},
    "RenderedSST2": _THREE_SPLITS,
}


def digits_source() -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, 0..16 scaled to 0..255; no test split."""
    from sklearn.datasets import load_digits  # a second to import, needed here only

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    pieces = _arrays("digits", list(pixels), found.target.tolist())
    return Source({"train": pieces}, [str(name) for name in range(10)], {"train": len(pixels)}, "scikit-learn")


def torchvision_source(name: str) -> Source:
    """A classification dataset of torchvision with its splits, downloaded to ``cache_folder()``.

    Raises:
        EasyCoreError: torchvision has none of this name, or cannot load it.
    """
    made, splits = _dataset_class(name)
    root = _make_download_folder()
    pieces: dict[Split, list[Piece]] = {}
    classes: list[str] | None = None
    num_rows: dict[Split, int] = {}
    for split, choice in splits.items():
        try:
            found = made(root=str(root), download=True, **choice)
            images, labels = zip(*found, strict=True)
            pictures = [take_over(image) for image in images]
            pieces[split] = _arrays(f"{name}/{split}", pictures, [int(label) for label in labels])
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            hint = f"; without internet access put its files into {root}" if _is_offline(error) else ""
            why = " ".join(str(error).split())
            raise EasyCoreError(f"torchvision:{name} cannot be loaded: {why}{hint}") from error
        own = [str(title) for title in getattr(found, "classes", [])] or None
        classes = classes or own
        places = {"place": f"the {split} split of torchvision:{name}", "classes_place": "its training split"}
        pieces[split] = name_labels(pieces[split], own, classes, **places)
        num_rows[split] = len(images)
    return Source(pieces, classes, num_rows, "torchvision" if classes else "")


def _is_offline(error: BaseException) -> bool:
    """Whether a server was not reached, as against one that refused, a full disk or a damaged file."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, HTTPError):
            return False
        # MNIST tries several servers and tells their errors in the text of its own.
        if isinstance(found, URLError | ConnectionError | TimeoutError) or "urlopen error" in str(found):
            return True
        found = found.__cause__ or found.__context__
    return False


def _dataset_class(name: str) -> tuple[Callable[..., Any], dict[Split, dict[str, Any]]]:
    """The dataset's constructor, and its arguments for each split."""
    import torchvision.datasets  # imports torch: seconds, needed here only

    made = getattr(torchvision.datasets, name, None) if name in torchvision.datasets.__all__ else None
    options = inspect.signature(made).parameters if made else {}
    if made is None or "root" not in options or "download" not in options:
        raise EasyCoreError(
            f"torchvision:{name} is nothing that torchvision downloads; allowed are e.g. CIFAR10, CIFAR100, "
            "MNIST, FashionMNIST, SVHN, STL10"
        )
    if "train" in options:
        return made, {"train": {"train": True}, "test": {"train": False}}
    if "split" in options:
        words = _SPLITS.get(name, {"train": "train", "test": "test"})
        return made, {split: {"split": word} for split, word in words.items()}
    return made, {"train": {}}


def _arrays(name: str, images: Sequence[Any], labels: Sequence[int]) -> list[Piece]:
    return [
        Arrays(
            name,
            start,
            tuple(images[start : start + _ROWS_PER_PIECE]),
            tuple(labels[start : start + _ROWS_PER_PIECE]),
        )
        for start in range(0, len(images), _ROWS_PER_PIECE)
    ]


def _make_download_folder() -> Path:
    try:
        folder = cache_folder() / "torchvision"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise EasyCoreError(
            f"downloads cannot be kept: {error}; set EASYCORE_CACHE to a folder of yours with enough room"
        ) from error
    return folder


def cache_folder() -> Path:
    """Where downloads are kept: ``EASYCORE_CACHE``, else ``easycore`` in the user's cache folder."""
    chosen = os.environ.get("EASYCORE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "easycore"
