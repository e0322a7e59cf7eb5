"""Values of configuration fields: what plainly means one is taken for it, everything else is refused by name."""

import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from easycore_ray import evaluate, select, sweep, train
from easycore_ray.config.experiments import AnalyzeConfig, SweepConfig
from easycore_ray.config.field_types import settle
from easycore_ray.config.fields import Eps, Workers
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import CleanConfig, EvaluateConfig, InspectConfig, TrainConfig
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

Several = tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (np.int64(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        (np.True_, bool, True),
        ("a", str, "a"),
        (Path("/a/b"), str, "/a/b"),
        (Path("digits"), str, "./digits"),
        (np.array(0.5), Several, (0.5,)),
        (Artifact("/a", {"kind": "dataset"}), str, "/a"),
        (Artifact("/a", {"kind": "dataset"}), str | None, "/a"),
        ("trades", Literal["standard", "trades"], "trades"),
        (None, int | None, None),
        (2, int | None, 2),
        ("8/255", Eps, 8 / 255),
        (1, Eps, 1.0),
        (("8/255", 0.5), tuple[Eps, ...], (8 / 255, 0.5)),
        ("8/255", tuple[Eps, ...], (8 / 255,)),
        ("2:8", Workers, (2, 8)),
        ("4", Workers, 4),
        ([2, 8], Workers, (2, 8)),
        (0.5, Several, (0.5,)),
        ([1, 0.5], Several, (1.0, 0.5)),
        (np.array([1, 6]), Several, (1.0, 6.0)),
        (range(3), tuple[int, ...], (0, 1, 2)),
        ("easycore", tuple[str, ...], ("easycore",)),
        ((), Several, ()),
        (None, tuple[str, ...] | None, None),
        ([0.1, 0.6], tuple[float, float], (0.1, 0.6)),
        ("x", Annotated[str, "whatever"], "x"),
    ],
)
def test_what_plainly_means_a_value_becomes_it(value, hint, expected):
    """In the very type of the field, so that manifests and identities are the same however it was written."""
    found = settle("field", value, hint)

    assert found == expected
    assert type(found) is type(expected)
    assert settle("field", found, hint) == found


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("3", int, "field must be a whole number, got '3'"),
        (2.5, int, "field must be a whole number, got 2.5"),
        (True, int, "field must be a whole number, got True"),
        (False, float, "field must be a number, got False"),
        ("0.1", float, "field must be a number, got '0.1'"),
        (None, float, "field must be a number, got None"),
        (1, bool, "field must be True or False, got 1"),
        (3, str, "field must be text, got 3"),
        (b"a", str, "field must be text"),
        (Path("s3://lab/run"), str, "field must be text for a remote path, got .*, which has lost a slash"),
        ("Trades", Literal["standard", "trades"], "field must be one of standard, trades, got 'Trades'"),
        (None, Literal["standard", "trades"], "field must be one of standard, trades, got None"),
        ("x/255", Eps, "field: .*x/255"),
        ("many", Workers, "field: must be N or MIN:MAX, e.g. 4 or 2:8, got 'many'"),
        ((1, 2, 3), Workers, "field must be a whole number"),
        ({0.5}, Several, "field must be a number, got {0.5}"),
        ((0.5, "x"), Several, "field must be a number, got 'x'"),
        (0.5, tuple[float, float], "field must be 2 values, got 0.5"),
        ((0.1, 0.2, 0.3), tuple[float, float], "field must be 2 values"),
        ("x", int | None, "field must be a whole number, got 'x'"),
    ],
)
def test_anything_else_is_refused_by_name(value, hint, words):
    """With what is allowed and what was given."""
    with pytest.raises(ValueError, match=f"^{words}"):
        settle("field", value, hint)


def test_all_wrong_fields_are_told_in_one_message():
    """A word that no branch knows is not taken for the default branch."""
    with pytest.raises(EasyCoreError) as caught:
        TrainConfig(out="o", dataset="d", training="Trades", precision="fp16", schedule="step", epochs=2.5)

    for words in (
        "training must be one of standard, trades, pgd, got 'Trades'",
        "precision must be one of fp32, bf16, got 'fp16'",
        "schedule must be one of constant, cosine, multistep, got 'step'",
        "epochs must be a whole number, got 2.5",
    ):
        assert words in str(caught.value)


def test_a_config_is_the_same_however_its_values_were_written():
    """Python's and the command line's words have one identity."""
    plain = SweepConfig(out="o", dataset="d", scores="s", fraction=(0.5,), beta=(6.0,), seeds=(0,), eps=8 / 255)
    loose = SweepConfig(out="o", dataset="d", scores="s", fraction=0.5, beta=[6], seeds=np.int64(0), eps="8/255")

    assert loose == plain
    assert identity_fields(loose) == identity_fields(plain)


def test_every_verb_takes_paths_and_artifacts():
    """Also those of several, and those that are no jobs with results."""
    made = Artifact("/a", {})

    assert EvaluateConfig(out=Path("/o"), checkpoint=made, dataset=made).checkpoint == "/a"
    assert AnalyzeConfig(out="o", scores=[made, Path("/b")]).scores == ("/a", "/b")
    assert InspectConfig(path=made).path == CleanConfig(path=made).path == "/a"
    with pytest.raises(EasyCoreError, match="verify must be True or False, got 'yes'"):
        InspectConfig(path="a", verify="yes")
    with pytest.raises(EasyCoreError, match=re.escape("older_than must be >= 0 hours, got -1")):
        CleanConfig(path="a", older_than=-1)


def test_a_misspelt_or_missing_keyword_is_told_with_the_verb():
    """Before anything is opened."""
    with pytest.raises(TypeError, match=r"^train\(\) has no field 'modle'; did you mean model\?$"):
        train(dataset="d", out="o", modle="cnn")
    with pytest.raises(TypeError, match=r"^evaluate\(\) needs checkpoint and dataset as well$"):
        evaluate(out="o")
    with pytest.raises(TypeError, match=r"^select\(\) has no field 'xyzzy'; its fields are out, "):
        select(out="o", xyzzy=1)
    with pytest.raises(EasyCoreError, match="seeds must be a whole number, got 'a'"):
        sweep(out="o", dataset="d", scores="s", seeds="a")
