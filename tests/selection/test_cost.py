"""Methods that cost more than some passes: refused where they would take too long or too much memory, naming both."""

import numpy as np
import pytest

from easycore_ray.core.selection import METHODS, quotas_of_sizes
from easycore_ray.selection import gathered_choice
from easycore_ray.selection.exact_cut import Selection
from easycore_ray.selection.gathered_choice import check_cost
from easycore_ray.storage.errors import EasyCoreError

SIZE = 64
LABELS = np.repeat(np.arange(10), 200)


def selection_of(method, *, balance=True, fraction=0.5):
    return Selection(method=METHODS[method], fraction=fraction, num_classes=10 if balance else None, options={})


def test_what_fits_is_let_through(monkeypatch):
    """At exactly the hours and the bytes that the classes take, one after the other; with less it is not."""
    cost = METHODS["gradmatch"].cost
    each = [cost(200, int(k), SIZE) for k in quotas_of_sizes(np.full(10, 200), 1000)]
    hours = sum(one.operations for one in each) / 2e10 / 3600
    memory = int(max(one.memory for one in each))
    for most_hours, most_bytes, fits in (
        (hours, memory, True),
        (hours, memory - 1, False),
        (0.99 * hours, memory, False),
    ):
        monkeypatch.setattr(gathered_choice, "_MOST_HOURS", most_hours)
        monkeypatch.setattr(gathered_choice, "usable_memory", lambda most_bytes=most_bytes: most_bytes)
        if fits:
            check_cost(selection_of("gradmatch"), LABELS, SIZE)
        else:
            with pytest.raises(EasyCoreError, match=r"gradmatch would take about .* for 2,000 samples of 64 features"):
                check_cost(selection_of("gradmatch"), LABELS, SIZE)


def test_a_million_pairs_of_gradients_are_refused_with_what_takes_less():
    """All at once they take terabytes; what to do depends on whether classes are apart already."""
    many = np.zeros(1_281_167, np.int64)
    with pytest.raises(
        EasyCoreError, match=r"method craig would take about .* h and 48,\d{3}\.\d GiB .*--balance class"
    ):
        check_cost(selection_of("craig", balance=False), many, SIZE)
    with pytest.raises(EasyCoreError, match=r"; a smaller --fraction or dataset takes less"):
        check_cost(selection_of("craig"), many, SIZE)
    check_cost(selection_of("moderate", balance=False), many, SIZE)
