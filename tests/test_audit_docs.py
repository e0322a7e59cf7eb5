"""docs/audit.md: its lines of Python run as they stand, as far as what they import is installed."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from easycore_ray import audit
from tests.artifacts import make_image_dataset, make_scoring_run

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "audit.md").read_text()
FIRST, *OTHERS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
LABELS = [number % 3 for number in range(30)]


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """What the first block sets, of a small run, and the rows of a Hugging Face dataset."""
    root = tmp_path_factory.mktemp("docs")
    dataset = make_image_dataset(root / "dataset", LABELS, copies={7: 4})
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    found = audit(out=f"{root}/audit", scores=scores.path, label_errors=0.1)
    names = {"DATASET": dataset.path, "RUN": scores.path, "AUDIT": found.path}
    exec(FIRST, names)
    return names


def test_scores_come_with_the_keys_of_the_source(joined):
    """Every row once, in the order of ids; the findings are those of the audit."""
    rows = joined["rows"]

    assert rows["sample_id"].to_pylist() == list(range(30))
    assert rows["key"].to_pylist() == [f"class {label}/{number}.png" for number, label in enumerate(LABELS)]
    assert joined["findings"].num_rows == 4
    assert set(joined["findings"]["key"].to_pylist()) <= set(rows["key"].to_pylist())


def test_each_tool_has_a_block():
    """FiftyOne, Hugging Face and cleanlab."""
    assert len(OTHERS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_a_block_runs(joined, number, tmp_path, monkeypatch):
    """Those for libraries that are not here are skipped by name."""
    block = OTHERS[number]
    for package in [*re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE), *["datasets"] * ("hf_" in block)]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names = dict(joined, SOURCE=str(tmp_path), pred_probs=np.full((30, 3), 1 / 3))
    if "hf_" in block:
        from datasets import Dataset

        names["hf_training_set"] = Dataset.from_dict({"label": LABELS})
    exec(block, names)
    if "hf_" in block:
        assert names["scored"]["aum"] == joined["rows"]["aum"].to_pylist()
        assert len(names["unsuspicious"]) == 30 - len(set(joined["findings"]["sample_id"].to_pylist()))
