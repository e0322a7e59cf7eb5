"""A program that type checkers read: what verbs take and give. ``mypy`` checks it; nothing runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
import pyarrow as pa
from torch import nn

from easycore_ray import (
    Checkpoint,
    Coreset,
    Dataset,
    Evaluation,
    ScoringRun,
    WorkPlan,
    evaluate,
    prepare,
    score,
    select,
    train,
)
from easycore_ray.config.stages import ScoreConfig


def story(folder: Path) -> None:
    """The pipeline, stage by stage."""
    data = assert_type(prepare(source="digits", out=folder / "dataset"), Dataset)
    scores = assert_type(
        score(dataset=data, out=folder / "scores", num_workers="2:4", batch_size=120, epochs=3), ScoringRun
    )
    assert_type(scores.hardness(), pa.Table)
    core = assert_type(select(scores=scores, fraction=0.5, out=folder / "coreset"), Coreset)
    assert_type(core.sample_ids(), np.ndarray)
    model = assert_type(train(dataset=data, coreset=core, training="trades", eps="8/255", out="model"), Checkpoint)
    assert_type(model.load_model(weights="best"), nn.Module)
    found = assert_type(
        evaluate(checkpoint=model, dataset=data, eval_eps=("2/255", 8 / 255), out="evaluation"), Evaluation
    )
    assert_type(found.clean_accuracy, float)
    assert_type(found.robust_accuracy("8/255"), float)
    assert_type(score.plan(dataset=data, out="scores", measure=True), WorkPlan)
    assert_type(score(ScoreConfig(dataset="d", out="o")), ScoringRun)
    train(dataset=data, out="model", training="fast")  # type: ignore[call-overload]
    train(out="model")  # type: ignore[call-overload]
