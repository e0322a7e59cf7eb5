"""What score() and reduce() would do, without doing it."""

from easycore_ray.config.base import to_dict
from easycore_ray.config.fields import format_workers, parse_epoch_range
from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.stages import ReduceConfig, ScoreConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.data.coreset import count_run_rows
from easycore_ray.engine.extra_data import count_extra_rows
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.shares import describe_rows, rows_per_epoch, steps_per_epoch
from easycore_ray.engine.throughput import Work, assumed_rates, estimates_of, network_of
from easycore_ray.scoring.score_table import EXTRA_SCORES, scored_epochs
from easycore_ray.storage import paths

# An upper estimate of a score row: 4 float32 columns, a flag, and deltas of ids and labels. Scores under attack add a
# column and a flag.
_BYTES_PER_SCORE, _BYTES_PER_ATTACKED_SCORE = 19, 24
# A row of hardness, as written: 5 float64 means, 3 counts, ids and labels. Scores under attack add a mean and a count.
_BYTES_PER_SAMPLE, _BYTES_PER_ATTACKED_SAMPLE = 60, 72


def plan_score(config: ScoreConfig, measure: bool = False, *, num_rows: int | None = None) -> WorkPlan:
    """The plan of a scoring run.

    Args:
        config: of the run.
        measure: take real steps and ask the cluster.
        num_rows: how many samples it scores, where the coreset that says so is not there yet.
    """
    dataset, parents = open_run_inputs(config)
    if num_rows is None:
        num_rows = count_run_rows(dataset, parents)
    scored = scored_epochs(to_dict(config), config.epochs)
    extra_rows = count_extra_rows(parents)
    works = scoring_works(config, num_rows, len(scored), extra_rows)
    network = network_of(config, dataset.image_shape)
    out = paths.absolute(config.out)
    attacked = config.training != "standard"
    per_score = _BYTES_PER_ATTACKED_SCORE if attacked else _BYTES_PER_SCORE
    per_sample = _BYTES_PER_ATTACKED_SAMPLE if attacked else _BYTES_PER_SAMPLE
    folders = [out, *([paths.join(out, EXTRA_SCORES)] if extra_rows else [])]
    plan = plan_for(
        "score",
        config,
        "scoring_run",
        run_identity("scoring_run", config, parents),
        work=f"train {config.model}{f' ({config.training})' * attacked} for {config.epochs} epochs on "
        f"{describe_rows(config, num_rows, extra_rows)} with {format_workers(config.num_workers)} workers, and score "
        f"{len(scored)} times",
        steps=config.epochs * steps_per_epoch(config, num_rows),
        samples=num_rows,
        bytes_written=(num_rows + extra_rows) * (len(scored) * per_score + per_sample),
        estimates=estimates_of(works, assumed_rates(network, config.batch_size), config.max_workers),
        makes=tuple(paths.join(folder, name) for folder in folders for name in ("table", "hardness")),
    )
    if not measure:
        return plan
    from easycore_ray.engine.measure import measure_plan

    return measure_plan(plan, config, dataset, works)


def scoring_works(config: ScoreConfig, num_rows: int, num_scored: int, extra_rows: int = 0) -> list[Work]:
    """What the images of a scoring run go through: training, fused with scores or not, and exact passes."""
    last = config.score_pass == "fused+eval"
    exact = num_scored if config.score_pass == "eval" else last + config.initial_pass
    step = config.training if config.score_pass == "eval" else "fused"
    attack_steps = config.attack_steps if config.training != "standard" else 0
    trained = config.epochs * rows_per_epoch(config, num_rows)
    return [Work(step, trained, attack_steps), Work("exact", exact * (num_rows + extra_rows), attack_steps)]


def plan_reduce(config: ReduceConfig, _measure: bool = False) -> WorkPlan:
    """The plan of a reduction; there is nothing to measure."""
    from easycore_ray.scoring.reduce import used_epochs
    from easycore_ray.scoring.score_reader import open_table, training_of

    table = open_table(paths.join(paths.absolute(config.scores), "table"))
    between = parse_epoch_range(config.epoch_range) if config.epoch_range is not None else None
    epochs = used_epochs(config, table, between)
    samples = table.artifact.manifest["counts"]["samples"]
    attacked = training_of(table.artifact) != "standard"
    return plan_for(
        "reduce",
        config,
        "hardness_table",
        artifact_identity("hardness_table", config, {"score_table": table.artifact}),
        work=f"reduce {samples:,} samples × {len(epochs)} epochs",
        samples=samples,
        bytes_written=samples * (_BYTES_PER_ATTACKED_SAMPLE if attacked else _BYTES_PER_SAMPLE),
    )
