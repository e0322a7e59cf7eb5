"""Plots draw what the sweep found: every row, epoch, class and score."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from easycore_ray.reporting import score_plots, sweep_plots
from easycore_ray.reporting.figures import styles, to_svg
from easycore_ray.reporting.image_grid import to_data_uri
from easycore_ray.reporting.score_plots import Mix
from tests.sweeps import make_curves, make_rows

# Every page draws a dozen plots.
pytestmark = pytest.mark.slow


def test_arms_look_the_same_in_every_report():
    """The usual arms keep their colours whatever else is drawn; no two arms share colour and marker."""
    many = ("easiest:el2n", "easycore", "random", "easycore/class", "hardest", "band", "random/class", "stratified")
    few, lots = styles(make_rows()), styles(make_rows(arms=many))

    assert {arm: lots[arm].colour for arm in few} == {arm: look.colour for arm, look in few.items()}
    assert len({(look.colour, look.marker) for look in lots.values()}) == len(lots) == 9


def test_robust_by_fraction_draws_the_rows():
    """Lines of a panel go through the rows' values, in per cent; full data is the line across."""
    from matplotlib.figure import Figure

    rows = make_rows(arms=("easycore", "random"), betas=(None,), all_eps=(4 / 255,))
    (panel,) = sweep_plots.robust_by_fraction(rows, styles(rows)).panels
    axes = Figure().add_subplot()
    panel.draw(axes)
    heights = [[round(float(height), 6) for height in line.get_ydata()] for line in axes.lines]

    assert panel.title == "Standard training, ε = 4/255"
    for arm in ("easycore", "random"):
        assert [round(100 * row["robust_accuracy_pgd20_mean"], 6) for row in rows if row["method"] == arm] in heights
    assert [round(100 * rows[0]["robust_accuracy_pgd20_mean"], 6)] * 2 in heights
    (_, _, (whiskers,)), *_ = axes.containers
    lengths = [top - bottom for (_, bottom), (_, top) in whiskers.get_segments()]
    assert lengths == pytest.approx([200 * r["robust_accuracy_pgd20_std"] for r in rows if r["method"] == "easycore"])


def test_training_curves_draw_every_epoch_and_mark_the_best():
    """Per objective and fraction, three panels with a line per arm; the highest validation accuracy is marked."""
    from matplotlib.figure import Figure

    rows = make_rows(arms=("easycore", "random"), fractions=(0.5,), betas=(None, 6.0), all_eps=(8 / 255,))
    curves = make_curves(rows)
    plot = sweep_plots.plot_training_curves(curves, styles(rows))
    alts = [panel.alt for panel in plot.panels]

    assert [alt.split(": ")[0] for alt in alts] == ["Standard training, 50 %"] * 3 + ["TRADES, β = 6, 50 %"] * 3
    assert alts[1].endswith(": training accuracy over the epochs")
    assert alts[-1].endswith(": robust validation accuracy over the epochs")
    axes = Figure().add_subplot()
    plot.panels[-1].draw(axes)
    (easycore,) = [curve for curve in curves if curve["method"] == "easycore" and curve["beta"] == 6.0]
    values = [100 * entry["val_robust_accuracy"] for entry in easycore["epochs"]]
    line = axes.lines[1]
    assert list(line.get_ydata()) == values
    assert line.get_markevery() == [values.index(max(values))]
    assert 0 < values.index(max(values)) < 19, "the curve does not overfit, so there is nothing to see"


def test_curves_without_validation_or_epochs_to_compare_are_left_out():
    """A sweep of an older release, or of single epochs, has no plot; one without a validation split has two panels."""
    rows = make_rows(arms=("easycore",), fractions=(0.5,), betas=(6.0,), all_eps=(8 / 255,))
    looks = styles(rows)
    plain = make_curves(rows)
    for curve in plain:
        curve["epochs"] = [{k: v for k, v in entry.items() if not k.startswith("val_")} for entry in curve["epochs"]]

    assert sweep_plots.plot_training_curves([], looks).panels == []
    assert sweep_plots.plot_training_curves(make_curves(rows, epochs=1), looks).panels == []
    assert len(sweep_plots.plot_training_curves(plain, looks).panels) == 2


def test_beta_needs_two_values_to_be_a_plot():
    """With one β there is no plot against it; with two there is a panel per fraction and eps."""
    looks = styles(make_rows())

    assert sweep_plots.robust_by_beta(make_rows(betas=(None, 6.0)), looks).panels == []
    assert len(sweep_plots.robust_by_beta(make_rows(), looks).panels) == 4


def test_class_mix_averages_seeds_and_is_relative_to_the_data():
    """Two draws of one arm are one line; twice the share of a class in the data is 2."""
    from matplotlib.figure import Figure

    mixes = [Mix("random", 0.5, [10, 0]), Mix("random", 0.5, [5, 5]), Mix("hardest", 0.5, [1, 9])]
    (panel,) = score_plots.plot_class_mix(mixes, np.array([30, 70]), ["cat", "dog"]).panels
    axes = Figure().add_subplot()
    panel.draw(axes)

    assert [text.get_text() for text in axes.texts] == ["2.50", "0.36", "0.33", "1.29"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random, 50 %", "hardest, 50 %"]


@pytest.mark.parametrize("aign", [np.zeros(9), np.full(9, 0.3), np.geomspace(1e-20, 1, 9), np.r_[0, np.ones(8)]])
def test_any_scores_have_a_histogram(aign):
    """Equal, vanishing and widely spread scores are drawn, every sample in some bin."""
    from matplotlib.figure import Figure

    hardness = {"label": np.arange(9) % 3, "aign": aign, "forgetting_events": np.arange(9) % 2,
                "first_learned_epoch": np.arange(9) - 1}  # fmt: skip
    plot = score_plots.distribution(hardness, ["a", "b", "c"], [0.3, 0.5])
    axes = Figure().add_subplot()
    plot.panels[0].draw(axes)

    assert max(sum(bar.get_height() for bar in stack) for stack in axes.containers[-1:]) <= 9
    assert sum(bar.get_y() + bar.get_height() for bar in axes.containers[-1]) == 9
    assert to_svg(plot.panels[1]).startswith(b"<?xml")


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), (32, 32)), ((1, 8, 8), (8, 8)), ((3, 400, 300), (120, 160))])
def test_pictures_keep_their_shape(shape, size):
    """Small images are kept pixel for pixel, large ones are scaled to 160 pixels on the longer side."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(to_data_uri(pixels).split(",")[1]))) as picture:
        assert picture.size == size
        if max(shape) < 160:
            np.testing.assert_array_equal(np.asarray(picture).reshape(*shape[1:], -1).transpose(2, 0, 1), pixels)
