"""Class names are drawn as they are, whatever characters they have."""

import numpy as np
import pytest

from easycore_ray.reporting import score_plots
from easycore_ray.reporting.figures import styles, to_png, to_svg
from easycore_ray.reporting.image_grid import Images, image_grid
from easycore_ray.reporting.score_plots import Mix

# Dollar signs enclose formulas in matplotlib's own notation.
NAMES = ["US$ and CA$", r"$\frac$", "_$x_{$^", "5 $"]
HARDNESS = {
    "label": np.arange(8) % 4,
    "aign": np.geomspace(1e-3, 1, 8),
    "forgetting_events": np.zeros(8, int),
    "first_learned_epoch": np.zeros(8, int),
}


def plots():
    """Every plot that shows class names."""
    images = Images(np.arange(4), np.arange(4), np.ones(4), np.zeros((4, 1, 8, 8), np.uint8))
    mix = score_plots.plot_class_mix([Mix("random", 0.5, [1, 1, 1, 1])], np.array([2, 2, 2, 2]), NAMES)
    return [score_plots.distribution(HARDNESS, NAMES, [0.5]), mix, image_grid("easiest", images, NAMES)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3), ids=["by class", "mix", "images"])
def test_names_with_dollar_signs_are_drawn(number):
    """As text, not as formulas that end in an error."""
    plot = plots()[number]

    assert all(to_svg(panel).startswith(b"<?xml") for panel in plot.panels)
    assert to_png(plot, styles([])).startswith(b"\x89PNG")


def test_logarithmic_axes_are_numbered_as_people_write():
    """Powers of ten would be formulas, and formulas are text."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    score_plots.distribution(HARDNESS, NAMES, [0.5]).panels[0].draw(axes)

    assert axes.get_xscale() == "log"
    labels = [label.get_text() for label in axes.get_xticklabels(which="both")]
    assert {"0.001", "0.01", "0.1", "1"} <= set(labels)
    assert not any("$" in label for label in labels)
