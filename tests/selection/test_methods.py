"""Every selection method keeps the contract, by every score, with and without class balance; so does a new one."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from easycore_ray.cli.options import parse
from easycore_ray.config.arms import Arm, parse_arm
from easycore_ray.config.stages import CoresetConfig, method_options
from easycore_ray.core.selection_methods import METHODS, markdown_table, ranking_method, selection_method
from easycore_ray.storage.errors import EasyCoreError
from tests.contract import CHECKS, check_count, check_files, check_names, check_seed, combinations, kept

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


# Those that write files, or choose many times over.
LONG = (check_count, check_files, check_names, check_seed)


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=pytest.mark.slow) if check in LONG else check for check in CHECKS],
    ids=lambda check: check.__name__,
)
def test_the_contract(check):
    """Every method, by every score, with and without class balance; the case that fails is named."""
    cases = list(combinations())
    assert {method for method, _, _ in cases} == set(METHODS)
    assert failures(check, cases) == {}


def failures(check, cases):
    """What a check says of each case that does not pass it."""
    found = {}
    for case in cases:
        try:
            check(*case)
        except (Exception, pytest.fail.Exception) as error:
            found[case] = repr(error)
    return found


def test_a_method_that_breaks_the_contract_is_found_by_name():
    """A check that fails for one case reports this case, and goes on to the others."""
    cases = [("random", None, "none"), ("full", None, "none"), ("random", None, "class")]
    seen = []

    def check(*case):
        seen.append(case)
        assert case != cases[1], "broken"

    assert list(failures(check, cases)) == [cases[1]]
    assert seen == cases


@pytest.fixture
def newcomers():
    """Two methods that nothing else knows of: one that ranks and one that sees all samples."""
    before = dict(METHODS)

    @ranking_method("near", default_score="el2n")
    def near(scores, uniform, *, target: float = 1.0):
        """The samples whose hardness is closest to a target."""
        return np.abs(scores - target)

    @selection_method("coin", draws=True)
    def coin(scores, sample_ids, labels, k, *, uniform, times: int = 3):
        """Drawn anew a number of times."""
        return np.sort(sample_ids[np.argsort(uniform * times % 1)[:k]])

    yield {name: METHODS[name] for name in ("near", "coin")}
    for name in set(METHODS) - set(before):
        del METHODS[name]


def test_a_new_method_is_one_decorated_function(newcomers):
    """The suite, the arm parser, the configuration and the table of methods know it at once."""
    cases = [case for case in combinations(newcomers) if case[1] in (None, "el2n", "aum")]
    assert {check.__name__: failures(check, cases) for check in CHECKS} == {check.__name__: {} for check in CHECKS}
    assert parse_arm("near:loss/class") == Arm("near", "loss", "class")
    assert parse_arm("coin") == Arm("coin", None, "none")
    argv = ["--out", "/o", "--scores", "/s", "--method", "near", "--option", "target=0.25"]
    assert method_options(parse(CoresetConfig, argv)) == {"target": 0.25}
    far, usual = (kept("near", "el2n", "none", fraction=0.1, **options) for options in ({"target": 3.0}, {}))
    assert far.tolist() != usual.tolist()
    assert "| `near` | The samples whose hardness is closest to a target. | any, usually `el2n` | `target` (1.0) |" in (
        markdown_table()
    )


@pytest.mark.slow
def test_jobs_know_a_new_method(tmp_path):
    """Command line and help of the coreset job, and the sweep's arms, with no edit but the function."""
    program = f"""
from easycore_ray.core.selection_methods import ranking_method

@ranking_method("near", default_score="el2n")
def near(scores, uniform, *, target: float = 1.0):
    '''The samples whose hardness is closest to a target.'''
    return abs(scores - target)

from easycore_ray.config.stages import CoresetConfig
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.selection.select import select
from easycore_ray.cli.command import run
from easycore_ray.cli.options import parse
from tests.contract import columns, table
from tests.artifacts import make_dataset
import json, numpy as np
labels = columns()["label"].tolist()
dataset = make_dataset({str(tmp_path)!r} + "/d", labels, ids=columns()["sample_id"].tolist())
import pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.table({{"sample_id": columns()["sample_id"], "score": columns()["el2n"]}}), {str(tmp_path)!r} + "/s")
argv = ["--dataset", {str(tmp_path)!r} + "/d", "--user-scores", {str(tmp_path)!r} + "/s", "--fraction", "0.1"]
made = run(CoresetConfig, select, [*argv, "--out", {str(tmp_path)!r} + "/c", "--method", "near",
                                   "--option", "target=3"])
print(made.manifest["method"], made.manifest["config"]["option"], made.manifest["counts"]["samples"])
sweep = parse(SweepConfig, ["--out", "/o", "--dataset", "/d", "--scores", "/s", "--method", "near:loss/class"])
print(sweep.method)
run(CoresetConfig, select, ["--help"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    words = " ".join(done.stdout.replace("│", " ").split())

    assert done.returncode == 0, done.stderr
    assert "near ['target=3'] 10" in done.stdout
    assert "('near:loss/class',)" in done.stdout
    assert re.search(r"[{,]near[,}]", words.replace(" ", ""))
    assert "near: the samples whose hardness is closest to a target." in words


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("stratified", ["stratta=20"], "method stratified has no option 'stratta'; its options are: strata"),
        ("easiest", ["strata=20"], "method easiest has no option 'strata'; its options are: none"),
        ("stratified", ["strata=2.5"], "option strata must be int, got '2.5'"),
        ("stratified", ["strata"], "option must be NAME=VALUE, got 'strata'"),
        ("stratified", ["cutoff=0.1"], "option cutoff has a flag of its own; pass --cutoff"),
    ],
)
def test_options_that_no_method_has_are_refused(method, options, message):
    """Before any work, with those it has."""
    with pytest.raises(EasyCoreError, match=message):
        CoresetConfig(out="/o", scores="/s", method=method, option=tuple(options))


def test_flags_and_options_reach_their_methods_only():
    """--cutoff and --band have flags of their own; what a method does not name it is not given."""
    config = CoresetConfig(
        out="/o", scores="/s", method="stratified", cutoff=0.1, band=(0.1, 0.2), option=("strata=9",)
    )

    assert method_options(config) == {"cutoff": 0.1, "strata": 9}
    assert method_options(config.replace(method="band", option=())) == {"band": (0.1, 0.2)}
    assert method_options(config.replace(method="random", option=())) == {}
