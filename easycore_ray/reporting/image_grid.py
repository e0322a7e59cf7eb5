"""Images of samples: as data URIs for the page, and as a plot with captions for a file."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from easycore_ray.reporting.figures import MUTED, Panel, Plot

# Pixels of the longer side on the page; larger images are scaled down, small ones are enlarged by the browser.
_LARGEST = 160


@dataclass(frozen=True)
class Images:
    """Samples to look at, in order."""

    sample_ids: NDArray[np.int64]
    """(B,)."""
    labels: NDArray[np.int64]
    """(B,)."""
    scores: NDArray[np.float64]
    """(B,): AIGN, or what the samples are shown by."""
    pixels: NDArray[np.uint8]
    """(B, channels, height, width)."""


def image_grid(name: str, images: Images, classes: Sequence[str], *, columns: int = 8) -> Plot:
    """The images with class, score and id below each."""
    panels = []
    for number, label, score, pixels in zip(
        images.sample_ids, images.labels, images.scores, images.pixels, strict=True
    ):
        text = f"{classes[int(label)]}\n{short(score)}  #{number}"
        panels.append(Panel("", text, partial(_show, np.asarray(_picture(pixels)), text), (1.15, 1.45)))
    return Plot(name, panels, columns=columns)


def extremes_grid(easiest: Images, hardest: Images, classes: Sequence[str], *, score: str, columns: int = 10) -> Plot:
    """The easiest images above the hardest ones, each with a heading, class, score and id."""
    panels: list[Panel] = []
    for heading, images in ((f"Easiest by {score}", easiest), (f"Hardest by {score}", hardest)):
        grid = list(image_grid("", images, classes).panels)
        grid += [Panel("", "", _nothing, grid[0].size)] * (-len(grid) % columns)
        for row, first in enumerate(range(0, len(grid), columns)):
            # Every row has a heading's height, so that all images are of one size.
            panel = grid[first]
            grid[first] = Panel("", panel.alt, partial(_headed, heading if row == 0 else "", panel.draw), panel.size)
        panels += grid
    return Plot("extremes", panels, columns=columns)


def short(score: float) -> str:
    """A score in three digits: ``3.00``, ``0.0121``, ``276``."""
    return f"{score:#.3g}".rstrip(".")


def to_data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image (channels, height, width) as a PNG inside a URI, at most 160 pixels on its longer side."""
    picture = _picture(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """A file inside a URI; ``kind`` is its media type, e.g. ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Grey for one channel, RGB for three; of any other number the mean is shown."""
    if pixels.shape[0] == 3:
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return Image.fromarray(pixels.mean(axis=0).astype(np.uint8))


def _nothing(axes: Axes) -> None:
    axes.set_axis_off()


def _headed(heading: str, draw: Callable[[Axes], None], axes: Axes) -> None:
    draw(axes)
    # Out of the layout, or the column would become as wide as the words.
    axes.set_title(heading or " ").set_in_layout(False)


def _show(picture: NDArray[Any], text: str, axes: Axes) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_xlabel(text, fontsize=6.5, color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
