"""How well do scoring runs of several seeds agree on the easiest half, score by score? And CCS with its own cut-off?

    python -m tests.benchmarks.study_halves --scores RUN RUN RUN --out FOLDER

Runs are of the same samples and at least 11 scored epochs. Scores that need more than every run records (``cld``,
``tdds``, ``grand``) are left out. Figures are in docs/methods.md.
"""

import argparse
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from easycore_ray import reduce
from easycore_ray.core.selection import choose
from easycore_ray.runtime.console import say
from easycore_ray.scoring.hardness_table import hardness_column, read_hardness

SCORES = (
    "aign", "el2n", "loss", "aum", "forgetting", "confidence", "learning_time", "correctness", "dual", "grad_norm_std",
    "margin_std", "dyn_unc", "frequency",
)  # fmt: skip


def half(table: pa.Table, method: str, score: str, fraction: float = 0.5, **options: Any) -> set[int]:
    """Ids that a method keeps."""
    values = {name: hardness_column(table, name).to_numpy() for name in (score, "confidence", "aum")}
    if method == "dual_beta":
        options["second"] = values["confidence"]
    if options.get("second_score"):
        options["second"] = values[options["second_score"]]
    ids, labels = (table[name].to_numpy() for name in ("sample_id", "label"))
    kept = choose(
        method, sample_ids=ids, labels=labels, fraction=fraction, scores=values[score], score=score, **options
    )
    return set(kept.tolist())


def agreement(tables: list[pa.Table], method: str, score: str) -> list[float]:
    """Share of the half that each pair of seeds has in common, in per cent."""
    halves = [half(table, method, score) for table in tables]
    return [100 * len(one & other) / len(one) for one, other in combinations(halves, 2)]


def main() -> None:
    """Reduce every run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", nargs="+", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    tables = [
        read_hardness(reduce(scores=run, out=f"{options.out}/{number}", only=SCORES))
        for number, run in enumerate(options.scores)
    ]
    arms = [*(("easiest", score) for score in SCORES), ("dual_beta", "dual")]
    for method, score in arms:
        found = agreement(tables, method, score)
        name = method if method == "dual_beta" else f"{method}:{score}"
        say(f"{name:24s} {np.mean(found):5.1f} %   {'  '.join(f'{each:.1f}' for each in found)}")
    for table in tables:
        ours, theirs = (
            half(table, "stratified", "el2n", 0.3, cutoff=0.2, **more) for more in ({}, {"second_score": "aum"})
        )
        same = 100 * len(ours & theirs) / len(ours)
        say(f"stratified:el2n, 30 %, cut-off 0.2 by el2n and by aum: {same:.1f} % the same")


if __name__ == "__main__":
    main()
