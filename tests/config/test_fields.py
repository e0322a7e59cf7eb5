"""Values of configuration fields: what plainly means one is taken for it, everything else is refused by name."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from easycore_ray import evaluate, select, sweep, train
from easycore_ray.config.base import Checked, configuration, setting
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import AnalyzeConfig, SweepConfig
from easycore_ray.config.fields import Eps, Flag, Number, Several, Text, Whole, Workers
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.inspection import CleanConfig, InspectConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError, FieldsError


@configuration
class Sample(Checked):
    """A field of each type."""

    whole: Whole = setting(default=1, identity=True, group="data")
    number: Number = setting(default=1.0, identity=True, group="data")
    flag: Flag = setting(default=False, identity=True, group="data")
    text: Text = setting(default="", identity=True, group="data")
    maybe: Text | None = setting(default=None, identity=True, group="data")
    maybe_whole: Whole | None = setting(default=None, identity=True, group="data")
    choice: Literal["standard", "trades"] = setting(default="standard", identity=True, group="data")
    eps: Eps = setting(default=0.0, identity=True, group="data")
    several_eps: Several[Eps] = setting(default=(), identity=True, group="data")
    workers: Workers = setting(default=1, identity=True, group="data")
    numbers: Several[Number] = setting(default=(), identity=True, group="data")
    seeds: Several[Whole] = setting(default=(), identity=True, group="data")
    names: Several[Text] = setting(default=(), identity=True, group="data")
    maybe_names: Several[Text] | None = setting(default=None, identity=True, group="data")
    band: tuple[Number, Number] = setting(default=(0.0, 1.0), identity=True, group="data")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("whole", 3, 3),
        ("whole", np.int64(3), 3),
        ("number", 3, 3.0),
        ("number", np.float32(0.5), 0.5),
        ("flag", np.True_, True),
        ("text", "a", "a"),
        ("text", Path("/a/b"), "/a/b"),
        ("text", Path("digits"), "./digits"),
        ("text", Artifact("/a", {"kind": "dataset"}), "/a"),
        ("maybe", Artifact("/a", {"kind": "dataset"}), "/a"),
        ("maybe", None, None),
        ("maybe_whole", 2, 2),
        ("choice", "trades", "trades"),
        ("eps", "8/255", 8 / 255),
        ("eps", 1, 1.0),
        ("several_eps", ("8/255", 0.5), (8 / 255, 0.5)),
        ("several_eps", "8/255", (8 / 255,)),
        ("workers", "2:8", (2, 8)),
        ("workers", "4", 4),
        ("workers", [2, 8], (2, 8)),
        ("numbers", np.array(0.5), (0.5,)),
        ("numbers", 0.5, (0.5,)),
        ("numbers", [1, 0.5], (1.0, 0.5)),
        ("numbers", np.array([1, 6]), (1.0, 6.0)),
        ("numbers", (), ()),
        ("seeds", range(3), (0, 1, 2)),
        ("names", "easycore", ("easycore",)),
        ("maybe_names", None, None),
        ("band", [0.1, 0.6], (0.1, 0.6)),
    ],
)
def test_what_plainly_means_a_value_becomes_it(field, value, expected):
    """In the very type of the field, so that manifests and identities are the same however it was written."""
    found = getattr(Sample(**{field: value}), field)

    assert found == expected
    assert type(found) is type(expected)
    assert getattr(Sample(**{field: found}), field) == found


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("whole", "3", "whole must be a whole number, got '3'"),
        ("whole", 2.5, "whole must be a whole number, got 2.5"),
        ("whole", True, "whole must be a whole number, got True"),
        ("number", False, "number must be a number, got False"),
        ("number", "0.1", "number must be a number, got '0.1'"),
        ("number", None, "number must be a number, got None"),
        ("flag", 1, "flag must be True or False, got 1"),
        ("text", 3, "text must be text, got 3"),
        ("text", b"a", "text must be text"),
        ("text", Path("s3://lab/run"), "text must be text for a remote path, got .*, which has lost a slash"),
        ("choice", "Trades", "choice must be one of standard, trades, got 'Trades'"),
        ("choice", None, "choice must be one of standard, trades, got None"),
        ("eps", "x/255", "eps: eps must be a number such as .*x/255"),
        ("workers", "many", "workers must be N or MIN:MAX, e.g. 4 or 2:8, got 'many'"),
        ("workers", (1, 2, 3), "workers must be N >= 1 or MIN:MAX .*, got 1:2:3"),
        ("numbers", {0.5}, "numbers must be a number, got {0.5}"),
        ("numbers", (0.5, "x"), "numbers must be a number, got 'x'"),
        ("band", 0.5, "band must be several values, got 0.5"),
        ("band", (0.1, 0.2, 0.3), "band must be 2 values"),
        ("maybe_whole", "x", "maybe_whole must be a whole number, got 'x'"),
    ],
)
def test_anything_else_is_refused_by_name(field, value, words):
    """With what is allowed and what was given, and no word of the library that checks."""
    with pytest.raises(FieldsError, match=f"^{words}") as caught:
        Sample(**{field: value})
    assert "pydantic" not in str(caught.value)


def test_all_wrong_fields_are_told_in_one_message():
    """A word that no branch knows is not taken for the default branch."""
    with pytest.raises(EasyCoreError) as caught:
        TrainConfig(out="o", dataset="d", training="Trades", precision="fp16", schedule="step", epochs=2.5)

    for words in (
        "training must be one of standard, trades, pgd, mart, nfgsm, got 'Trades'",
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
    with pytest.raises(EasyCoreError, match=re.escape("older_than must be >= 0, got -1")):
        CleanConfig(path="a", older_than=-1)


def test_a_misspelt_or_missing_keyword_is_told_with_the_verb():
    """Before anything is opened."""
    with pytest.raises(TypeError, match=r"^train\(\) has no field 'modle'; did you mean model\?$"):
        train(dataset="d", out="o", modle="cnn")
    with pytest.raises(TypeError, match=r"^evaluate\(\) needs dataset as well$"):
        evaluate(out="o")
    with pytest.raises(TypeError, match=r"^select\(\) has no field 'xyzzy'; its fields are out, "):
        select(out="o", xyzzy=1)
    with pytest.raises(EasyCoreError, match="seeds must be a whole number, got 'a'"):
        sweep(out="o", dataset="d", scores="s", seeds="a")
