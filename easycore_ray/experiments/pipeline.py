"""pipeline(): every stage in order, each one's artifact below ``--out``.

Finished stages are reused and an unfinished one is resumed, so the same command resumes after any
interruption and ends in seconds when there is nothing left to do.
"""

import time
from collections.abc import Mapping
from typing import Any

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.experiments import PipelineConfig
from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.inspection import ReportConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.ingest.pipeline import prepare
from easycore_ray.engine.extra_data import open_extra, open_extra_parents
from easycore_ray.evaluation.threats import AUTOATTACK, require_autoattack
from easycore_ray.experiments.comparison_rules import check_comparable
from easycore_ray.experiments.plans import plan_pipeline
from easycore_ray.experiments.results import read_result_rows
from easycore_ray.experiments.sweep import describe_sweep, sweep
from easycore_ray.experiments.tracked_trials import describe_parent
from easycore_ray.experiments.trials import is_finished
from easycore_ray.reporting.report import report
from easycore_ray.runtime.claims import warn_of_other_machines
from easycore_ray.runtime.console import duration, say
from easycore_ray.scoring.score import describe_scoring, score
from easycore_ray.selection.select import draw_subset
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim, claim, content_folder, finish
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.addresses import default_uri
from easycore_ray.tracking.mlflow import reconcile, track
from easycore_ray.tracking.runs import TrackedRun, under


class Pipeline(Artifact):
    """A finished pipeline."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm, fraction, objective and eps: mean and standard deviation over seeds."""
        return read_result_rows(self.path)

    @property
    def page(self) -> str:
        """Path of the self-contained HTML report."""
        return paths.join(self.path, "report.html")


@verb(PipelineConfig, gives=Pipeline, plan=plan_pipeline)
def pipeline(config: PipelineConfig) -> Artifact:
    """Prepare (or take) a dataset, score it, sweep over coresets, report.

    Returns:
        The pipeline's artifact: ``summary.json``, ``report.html`` and the stages' folders.

    Raises:
        EasyCoreError: as the stages.
    """
    started = time.monotonic()
    out = paths.absolute(config.out)
    config = config.replace(out=out, tracking_uri=config.tracking_uri or default_uri(out))
    if AUTOATTACK in config.attack:
        require_autoattack()  # before hours of scoring
    parents = open_extra(config)
    if config.dataset is not None:
        dataset = open_dataset(config.dataset)
        check_comparable(config.sweep_config(dataset.path, "scores"), dataset)
        parents |= {"dataset": dataset, **open_extra_parents(config, dataset)}
    key = pipeline_identity(config, parents)
    made = claim(out, "pipeline", key, overwrite=config.overwrite, take_over=config.take_over)
    warn_of_other_machines(made, parents.values())
    if isinstance(made, Artifact):
        say(f"pipeline: {out} is finished, reused")
        reconcile(config, out, lambda status: _describe_stages(config.replace(out=made.path), status))
        return made
    with (
        track(config, out, lambda status: [describe_parent(config, made.path, "pipeline", status)]),
        under(describe_parent(config, made.path, "pipeline", "RUNNING")),
    ):
        return _run_stages(config.replace(overwrite=False, take_over=False, out=made.path), made, parents, started)


def _run_stages(config: PipelineConfig, made: Claim, parents: Mapping[str, Artifact], started: float) -> Artifact:
    """Whatever of the stages is not finished, and the pipeline's own files."""
    out = made.replaces or made.path
    dataset = parents.get("dataset") or prepare(config.prepare_config())
    opened, pool = open_dataset(dataset.path), None
    extra = open_extra_parents(config, opened)  # before hours of scoring
    check_comparable(config.sweep_config(dataset.path, "scores"), opened)
    if config.subset is not None:
        pool = draw_subset(opened, paths.join(made.path, "subset"), config.subset, config.seed)
    scores = score(config.score_config(dataset.path, pool.path if pool else None))
    swept = sweep(config.sweep_config(dataset.path, scores.path))
    page = report(ReportConfig(out=paths.join(made.path, "report"), sweep=swept.path, note=config.note))
    for name, stage in (("summary.json", swept), ("report.html", page)):
        paths.copy_file(paths.join(stage.path, name), paths.join(made.path, name))
    artifact = finish(
        made,
        fingerprint=content_hash(swept.fingerprint),
        config=to_dict(config.replace(out=out)),
        parents={"dataset": dataset, **extra, "scores": scores, "sweep": swept, "report": page},
        counts=swept.manifest["counts"],
        wall_seconds=time.monotonic() - started,
        device_seconds=scores.manifest["device_seconds"] + swept.manifest["device_seconds"],
    )
    say(f"pipeline: finished in {duration(time.monotonic() - started)}")
    return artifact


def pipeline_identity(config: PipelineConfig, parents: Mapping[str, Artifact]) -> str:
    """What decides a pipeline. Sources have no fingerprint before they are read, so their names count."""
    sources = None if config.dataset else [config.source, config.test_source]
    return artifact_identity("pipeline", config, parents, sources=sources)


def _describe_stages(config: PipelineConfig, status: str) -> list[TrackedRun]:
    """The MLflow runs of a finished pipeline and its stages."""
    dataset = open_dataset(config.dataset or config.prepare_config().out)
    scoring = config.score_config(dataset.path)
    sweeping = config.sweep_config(dataset.path, scoring.out)
    runs = [describe_parent(config, config.out, "pipeline", status)]
    with under(runs[0]):
        if is_finished(scoring.out):
            runs.append(describe_scoring(scoring, content_folder(scoring.out), status))
        if is_finished(sweeping.out):
            runs += describe_sweep(sweeping, content_folder(sweeping.out), status)
    return runs
