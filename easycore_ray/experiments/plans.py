"""What sweep(), study() and pipeline() would do, without doing it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from easycore_ray.config.arms import parse_arm, trajectory_problems
from easycore_ray.config.experiments import PipelineConfig, StudyConfig, SweepConfig
from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.work_plan import WorkPlan, join_plans, plan_for
from easycore_ray.core.names import chosen_corruptions
from easycore_ray.core.selection import ADVERSARIAL_SCORES, budget
from easycore_ray.data.dataset import Dataset, check_same_dataset, open_dataset
from easycore_ray.data.ingest.plans import plan_prepare
from easycore_ray.engine.budget import plan_steps, without_steps
from easycore_ray.engine.extra_data import extra_data, open_extra_parents
from easycore_ray.engine.run_inputs import check_budget
from easycore_ray.engine.shares import training_steps
from easycore_ray.engine.throughput import Work, assumed_rates, checkpoint_bytes, estimates_of, network_of
from easycore_ray.evaluation.plans import attack_works, image_count
from easycore_ray.experiments.comparison_rules import check_comparable, rungs_of
from easycore_ray.experiments.finished_trials import read_finished
from easycore_ray.experiments.search_points import planned_trials
from easycore_ray.experiments.trials import Trial, coreset_folders, is_finished, make_trials
from easycore_ray.scoring.hardness_table import not_recorded, open_hardness
from easycore_ray.scoring.plans import plan_score
from easycore_ray.scoring.score_reader import training_of
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.plans import training_works


def open_sweep_inputs(config: SweepConfig) -> tuple[Dataset, Artifact, dict[str, Artifact]]:
    """The dataset and hardness table of a sweep, and its parents by role.

    Raises:
        EasyCoreError: one is missing or foreign, a perturbation is wider than the images, or an arm goes by a score
            that was not recorded.
    """
    from easycore_ray.evaluation.threats import Threats, check_threats

    dataset, hardness = open_dataset(config.dataset), open_hardness(config.scores)
    check_same_dataset(hardness, dataset)
    corruptions = chosen_corruptions(config.corruptions)
    threats = Threats(attack=config.attack, eps=config.eval_eps, norm=config.norm, seed=0, corruptions=corruptions)
    check_threats(threats, dataset.image_shape)
    if ADVERSARIAL & {*config.training}:
        check_budget(config.eps, config.norm, dataset.image_shape)
    check_comparable(config, dataset)
    parents = {"dataset": dataset, "scores": open_artifact(config.scores, "scoring_run")}
    for arm in map(parse_arm, config.method):
        if arm.score in ADVERSARIAL_SCORES and training_of(hardness) == "standard":
            raise EasyCoreError(f"method {arm.name}: {not_recorded(arm.score)}")
        recorded = parents["scores"].manifest["config"].get("record", ())
        if missing := [name for name in arm.needs_recorded if name not in recorded]:
            raise EasyCoreError(
                f"method {arm.name} needs what scoring records on request; score with --record {' '.join(missing)}"
            )
    if problems := trajectory_problems(map(parse_arm, config.method), hardness.manifest["counts"]["scored_epochs"]):
        raise EasyCoreError(problems[0])
    return dataset, hardness, parents | open_extra_parents(config, dataset)


def plan_sweep(config: SweepConfig, measure: bool = False) -> WorkPlan:
    """The plan of a sweep."""
    dataset, hardness, parents = open_sweep_inputs(config)
    out, count = paths.absolute(config.out), hardness.manifest["counts"]["samples"]
    steps = _planned_steps(config, dataset, measure)
    trials = planned_trials(config, out, steps)
    done = [each.trial for each in read_finished(trials).values()]
    names = ", ".join(dict.fromkeys(trial.arm.name for trial in trials))
    todo = [trial for trial in trials if trial not in done]
    # Points of a search that are not chosen yet are planned as the largest, also where that one is done.
    todo += trials[-1:] * (len(trials) - len(done) - len(todo))
    plan = _plan_trials(config, dataset, todo, count, measure)
    plan = without_steps(plan) if steps == {} else plan
    extra = extra_data(config, dataset, parents)
    return plan_for(
        "sweep",
        config,
        "sweep",
        artifact_identity("sweep", config, parents),
        work=f"run {len(trials) - len(done)} of {len(trials)} trials{_choice_text(config)} ({names}; "
        f"{len(config.seeds)} seeds) on {count:,} samples of {dataset.path}"
        + ("" if extra is None else f"; {extra.describe(config.batch_size)}"),
        **_details(plan),
        finished=tuple(trial.train.out for trial in done),
        makes=(paths.join(out, "coresets"), paths.join(out, "trials"), paths.join(out, "summary.json")),
    )


def _choice_text(config: SweepConfig) -> str:
    """That there may be less to do than planned."""
    found = ""
    if config.search != "none":
        found += f" ({config.num_trials} of them at points that are searched for, each planned at its largest)"
    if config.scheduler != "none":
        shares = ", ".join(f"{rung / 10:.3g}" for rung in rungs_of(config))
        found += f" (at most: those that are behind after {shares} % of their steps are stopped)"
    return found


def plan_study(config: StudyConfig, measure: bool = False) -> WorkPlan:
    """The plan of a study: the trials its results file does not have, and the scoring runs they need."""
    from easycore_ray.experiments.study_results import key_of, open_study, scores_folder

    config = config.replace(out=paths.absolute(config.out))
    study = open_study(config)
    missing = {key_of(trial): trial for trials in study.missing.values() for trial in trials}
    parts = ", ".join(f"{part}: {len(trials)}" for part, trials in study.missing.items())
    count = config.subset or study.dataset.num_rows("train")
    seeds = [seed for seed in dict.fromkeys(trial.seed for trial in missing.values())
             if not is_finished(scores_folder(config, seed))]  # fmt: skip
    scoring = [
        plan_score(config.score_config(scores_folder(config, seed), seed), measure and not number, num_rows=count)
        for number, seed in enumerate(seeds)
    ]
    sweep = config.sweep_config("scores", config.seeds[0], ("random",))
    # AutoAttack has no model of its own.
    untrained = {trial.train.out for trial in missing.values() if not is_finished(trial.train.out)}
    trials = _plan_trials(sweep, study.dataset, list(missing.values()), count, measure, untrained)
    return join_plans(
        "study",
        f"run {len(missing)} of {study.total} trials ({parts}) after {len(seeds)} scoring runs → {study.results}",
        config.out,
        [*scoring, trials],
    ).replace(makes=(config.out, study.results))


def plan_pipeline(config: PipelineConfig, measure: bool = False) -> WorkPlan:
    """The plan of a pipeline, as far as it can be known before its stages have run."""
    from easycore_ray.selection.select import check_subset

    out = paths.absolute(config.out)
    config = config.replace(out=out)
    prepared = config.prepare_config().out
    where = config.dataset or (prepared if is_finished(prepared) else None)
    sweep = config.sweep_config(where or "dataset", "scores")
    steps = None if where is None else _planned_steps(sweep, open_dataset(where), measure)
    trials = make_trials(sweep, sweep.out, coreset_folders(sweep, sweep.out), steps)
    work = f"score for {config.score_epochs} epochs, run {len(trials)} trials{_choice_text(sweep)} and report"
    if where is None:
        plan = join_plans("pipeline", work, out, [plan_prepare(config.prepare_config())])
        return plan.replace(
            work=f"{plan_prepare(config.prepare_config()).work}, then {work}",
            trials=len(trials),
            makes=(*plan.makes, *(paths.join(out, name) for name in ("scores", "sweep", "report", "summary.json"))),
            warnings=(*plan.warnings, "steps and time are known once the dataset is prepared"),
        )
    dataset = open_dataset(where)
    if config.subset is not None:
        check_subset(dataset, config.subset)
        work = f"draw {config.subset:,} of {dataset.num_rows('train'):,} training samples, {work}"
    count = config.subset or dataset.num_rows("train")
    scoring = plan_score(config.score_config(where), measure, num_rows=count)
    todo = [trial for trial in trials if not is_finished(trial.evaluate.out)]
    planned = _plan_trials(sweep, dataset, todo, count, measure)
    plan = join_plans("pipeline", work, out, [scoring, without_steps(planned) if steps == {} else planned])
    return plan.replace(
        makes=(*plan.makes, paths.join(out, "sweep"), paths.join(out, "report"), paths.join(out, "summary.json")),
        finished=(*plan.finished, *(trial.train.out for trial in trials if trial not in todo)),
    )


def _planned_steps(config: SweepConfig, dataset: Dataset, measure: bool) -> Mapping[str, int] | None:
    """About the steps of each objective where they follow from device-seconds; empty where nobody knows them yet."""
    if config.device_seconds is None:
        return None
    first = make_trials(config, config.out, coreset_folders(config, config.out), {})[0].train
    return plan_steps(config.out, first, config.training, config.device_seconds, dataset, measure) or {}


def _plan_trials(
    config: SweepConfig,
    dataset: Dataset,
    trials: Sequence[Trial],
    count: int,
    measure: bool,
    untrained: Collection[str] | None = None,
) -> WorkPlan:
    """Steps, bytes and time of trials on coresets of ``count`` samples.

    ``untrained``: the checkpoints that are to be made, each once; one for each trial if left out.
    """
    makers = trials if untrained is None else [
        trial for trial in {trial.train.out: trial for trial in trials}.values() if trial.train.out in untrained
    ]  # fmt: skip
    kept = {trial.name: count if trial.arm.is_dynamic else budget(count, trial.fraction) for trial in trials}
    works: list[Work] = []
    for trial in makers:
        works += training_works(trial.train, kept[trial.name], dataset.num_rows("val"))
    for trial in trials:
        averaged = trial.train.ema is not None and "averaged" in trial.others_too
        works += attack_works(trial.evaluate, image_count(trial.evaluate, dataset)) * (1 + averaged)
    size = checkpoint_bytes(config.model, config.width) if trials else 0
    plan = WorkPlan(
        verb="sweep",
        work="",
        out=config.out,
        trials=len(trials),
        steps=sum(training_steps(trial.train, kept[trial.name]) for trial in makers),
        samples=count,
        bytes_written=None if size is None else len(makers) * size,
    )
    if not trials:
        return plan
    network = network_of(trials[0].train, dataset.image_shape)
    workers = config.trial_workers * (config.max_concurrent_trials or 1)
    training = [work for work in works if work.in_training]
    attacks = [work for work in works if not work.in_training]
    # Evaluation is always in float32, and never compiled.
    plain = replace(network, precision="fp32", compile=False)
    plan = plan.replace(
        estimates=(
            *estimates_of(training, assumed_rates(network, config.batch_size), workers),
            *estimates_of(attacks, assumed_rates(plain), workers),
        )
    )
    if not measure:
        return plan
    from easycore_ray.engine.measure import measure_plan
    from easycore_ray.experiments.trial_runner import concurrency_of

    plan = measure_plan(plan, trials[0].train, dataset, works)
    try:
        workers = config.trial_workers * concurrency_of(config)
    except EasyCoreError:
        return plan  # more than the cluster can give, which is among its warnings
    return plan.replace(estimates=tuple(replace(estimate, workers=workers) for estimate in plan.estimates))


def _details(plan: WorkPlan) -> dict[str, object]:
    names = ("trials", "steps", "samples", "bytes_written", "estimates", "warnings", "measured")
    return {name: getattr(plan, name) for name in names}
