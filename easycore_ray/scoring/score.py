"""score(): train on all samples and record each one's input gradient norm after every epoch.

Takes a dataset, gives a scoring-run folder: ``table/`` (the score table) and ``hardness/`` (reduced to
one row per sample). One run serves every score-based method. Rows are written by the workers, one part
each per segment of an epoch, and become part of the table with a checkpoint, so weights and scores cannot
diverge: after any failure the table is the one of an uninterrupted run.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.stages import ReduceConfig, ScoreConfig
from easycore_ray.core.last_layer import check_last_layer
from easycore_ray.core.models import build_model
from easycore_ray.core.score_stability import in_sample, stability
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.engine.extra_data import ExtraData, extra_data
from easycore_ray.engine.plan import Fit, make_fit
from easycore_ray.engine.ray_train import check_resources, fit_tracked
from easycore_ray.engine.run import Recorder
from easycore_ray.engine.run_history import describe_training_run, train_run_name
from easycore_ray.engine.run_identity import claim_run
from easycore_ray.engine.run_inputs import INIT_FROM, open_run_inputs
from easycore_ray.engine.state import VAL_LOSSES, State
from easycore_ray.engine.worker_group import Context
from easycore_ray.runtime.console import duration, say
from easycore_ray.scoring.extra_scores import MixedRecorder, extra_history, extra_parents
from easycore_ray.scoring.feature_table import FEATURE_TABLE, describe_features, write_feature_part
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.plans import plan_score
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.score_table import (
    CARRIED_EXTRA,
    EXTRA_SCORES,
    ScorePart,
    check_coverage,
    check_segment,
    fingerprint,
    id_checksum,
    read_part_lists,
    write_part,
    write_part_list,
    write_samples,
)
from easycore_ray.scoring.softmax_table import SOFTMAX, change, check_size, likely_first, read_softmax, write_softmax
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim, finish
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import Tracker, reconcile, track
from easycore_ray.tracking.runs import TrackedRun

# Sums over an epoch's samples, by the name they travel under: the column, and the metric that is its mean.
_SUMS = {
    "norm_sum": ("grad_norm", "mean_grad_norm"),
    "adv_loss_sum": ("adv_loss", "mean_adv_loss"),
    "adv_correct_sum": ("adv_correct", "adv_accuracy"),
}


class ScoringRun(Artifact):
    """A finished scoring run: ``table/`` (a row per sample and scored epoch) and ``hardness/`` (a row per sample)."""

    def hardness(self, columns: list[str] | None = None) -> pa.Table:
        """One row per sample, sorted by ``sample_id`` (int64): ``aign`` and the other scores, float64.

        Args:
            columns: names of those to read; all if left out.
        """
        return read_hardness(open_hardness(self.path), columns)


@dataclass(frozen=True)
class ScoreRecorder:
    """Writes this worker's scores of each segment as a part, and checks that all workers' make a whole.

    In ``carried`` it keeps the parts of the epoch under way, the lists of those before, and the sums that its metrics
    follow from; see ``engine.run.Recorder``.
    """

    table: str
    lists: str
    """Folder of the lists of parts, see ``score_table.write_part_list``."""
    epochs: int
    every: int
    score_pass: str
    initial_pass: bool
    num_samples: int
    checksum: int
    stop_when_stable: float | None = None
    features: str | None = None
    """Folder of the feature table; None if features are not recorded."""
    softmax: str | None = None
    """Folder of what ``kd_prev`` compares with; None if it is not recorded."""

    def records_steps(self, epoch: int) -> bool:
        """See ``Recorder``."""
        return self.score_pass != "eval" and self._wanted(epoch)

    def exact_pass(self, epoch: int, carried: dict[str, Any]) -> int | None:
        """See ``Recorder``."""
        if epoch == 0 or self.score_pass == "eval":
            return epoch if self._wanted(epoch) else None
        # The weights after the last epoch are those with which one more would begin.
        last = epoch == self.epochs or carried.get("stopped", False)
        return epoch + 1 if self.score_pass == "fused+eval" and last else None

    def also_records(self, epoch: int) -> tuple[str, ...]:
        """See ``Recorder``: features of the final weights, the softmax of every epoch."""
        last = self.score_pass == "fused+eval" or epoch == self.epochs
        features = ("features",) if self.features is not None and epoch > 0 and last else ()
        return (*features, "kd") if self.softmax is not None and epoch > 0 else features

    def _wanted(self, epoch: int) -> bool:
        return self.initial_pass if epoch == 0 else (self.epochs - epoch) % self.every == 0

    def record(
        self,
        context: Context,
        columns: dict[str, np.ndarray],
        *,
        epoch: int,
        segment: int,
        rows: int,
        carried: dict[str, Any],
    ) -> None:
        """See ``Recorder``."""
        where: dict[str, Any] = {"epoch": epoch, "segment": segment, "rank": context.rank, "attempt": context.attempt}
        if "features" in columns:
            assert self.features is not None
            placed = context.gather(write_feature_part(self.features, columns, **where).to_dict())
            carried.setdefault("feature_parts", []).extend(placed)
        if self.softmax is not None:
            columns = columns | {"kd_prev": self._compare(context, columns, where, carried)}
        part = write_part(self.table, columns, **where)
        chosen = in_sample(columns["sample_id"], self.num_samples)
        sample = (columns["sample_id"][chosen], columns["grad_norm"][chosen])
        totals = {
            key: float(np.sum(columns[name], dtype=np.float64)) for key, (name, _) in _SUMS.items() if name in columns
        }
        described = context.gather((part.to_dict(), totals, sample))
        parts = [ScorePart.from_dict(entry) for entry, _, _ in described]
        check_segment(parts, epoch=epoch, segment=segment, num_rows=rows)
        carried.setdefault("parts", []).extend(part.to_dict() for part in parts)
        for key in totals:
            carried[key] = carried.get(key, 0.0) + math.fsum(theirs[key] for _, theirs, _ in described)
        for name, position in (("followed_ids", 0), ("followed_norms", 1)):
            found = [torch.from_numpy(sample[position]) for _, _, sample in described]
            carried[name] = torch.cat([carried[name], *found] if name in carried else found)

    def _compare(
        self, context: Context, columns: dict[str, np.ndarray], where: dict[str, Any], carried: dict[str, Any]
    ) -> np.ndarray:
        """Change of the softmax since the scored epoch before, float32 (n,); 0 where there is none."""
        assert self.softmax is not None
        if not where["epoch"]:
            return np.zeros(len(columns["sample_id"]), np.float32)
        written = context.gather(write_softmax(self.softmax, columns, **where).to_dict())
        carried.setdefault("softmax_parts", []).extend(written)
        if "softmax_before" not in carried:
            return np.zeros(len(columns["sample_id"]), np.float32)
        before = likely_first(carried["softmax_before"], where["rank"], where["segment"])
        return change(columns["softmax"], read_softmax(self.softmax, before, columns["sample_id"]))

    def complete(self, context: Context, epoch: int, carried: dict[str, Any]) -> dict[str, float]:
        """See ``Recorder``: check that the epoch is whole, list its parts, and measure how stable AIGN is."""
        parts = [ScorePart.from_dict(entry) for entry in carried.pop("parts")]
        check_coverage(parts, epoch=epoch, num_samples=self.num_samples, checksum=self.checksum)
        entry = write_part_list(self.lists, parts, epoch=epoch, attempt=context.attempt, write=context.rank == 0)
        carried.setdefault("part_lists", []).append(entry)
        if "softmax_parts" in carried:
            self._keep_softmax(context, epoch, carried)
        if "feature_parts" in carried:
            parts = [ScorePart.from_dict(entry) for entry in carried["feature_parts"]]
            check_coverage(parts, epoch=epoch, num_samples=self.num_samples, checksum=self.checksum)
        metrics = {metric: carried.pop(key) / self.num_samples for key, (_, metric) in _SUMS.items() if key in carried}
        ids, norms = (carried.pop(name).numpy() for name in ("followed_ids", "followed_norms"))
        if epoch > 0:
            metrics |= _follow_sample(ids, norms, carried)
        if self.stop_when_stable is not None and metrics.get("easiest_overlap", 0.0) >= self.stop_when_stable:
            carried["stopped"] = True
        return metrics

    def _keep_softmax(self, context: Context, epoch: int, carried: dict[str, Any]) -> None:
        """Make this epoch the one that the next is compared with; what no commit needs any more is deleted."""
        assert self.softmax is not None
        # The newest commit is of this epoch or of the end of the one before it, which this one was compared with.
        keep = {f"epoch={part['epoch']:05d}" for part in carried["softmax_parts"] + carried.get("softmax_before", [])}
        carried["softmax_before"] = carried.pop("softmax_parts")
        if context.rank == 0:
            for folder in paths.list_subfolders(self.softmax):
                if folder.rpartition("/")[2] not in keep:
                    paths.delete_tree(folder)


def _follow_sample(ids: np.ndarray, norms: np.ndarray, carried: dict[str, Any]) -> dict[str, float]:
    """Add an epoch's gradient norms of the fixed sample to its sums in ``carried``; how much that changed AIGN.

    The sums travel in the checkpoint, so that a restarted run compares the same means.
    """
    order = np.argsort(ids)
    norms = norms[order].astype(np.float64)
    count = carried.get("sample_epochs", 0)
    before = carried["sample_sums"].numpy() if count else np.zeros_like(norms)
    carried["sample_sums"] = torch.from_numpy(before + norms)
    carried["sample_epochs"] = count + 1
    if not count:
        return {}
    return stability(ids[order], before / count, (before + norms) / (count + 1))


@verb(ScoreConfig, gives=ScoringRun, plan=plan_score)
def score(config: ScoreConfig) -> Artifact:
    """Run (or resume, or reuse) a scoring run, then reduce its table.

    Returns:
        The scoring run: its folder holds ``table/`` and ``hardness/``.

    Raises:
        EasyCoreError: for a missing or foreign dataset, initial weights of another network, workers the cluster cannot
            give, a diverged run.
    """
    started = time.monotonic()
    dataset, parents = open_run_inputs(config)
    out = paths.absolute(config.out)
    extra = extra_data(config, dataset, parents)
    fit = make_scoring_fit(config, dataset, parents.get("coreset"), parents.get(INIT_FROM), extra)
    made = claim_run("scoring_run", config, parents)
    if isinstance(made, Artifact):
        say(f"score: {out} is finished, reused")
        reconcile(config, out, lambda status: [describe_scoring(config, made.path, status)])
        return made
    check_resources(fit, config, made, "score")
    with track(config, out, lambda status: [describe_scoring(config, made.path, status)]) as tracker:
        state = _train_and_score(config, fit, dataset, made, tracker)
        artifact = _finish_run(config, made, parents, state, fit, time.monotonic() - started)
        taken = duration(time.monotonic() - started)
        early = f" (stable: ended {config.epochs - state.epoch} early)" if state.epoch < config.epochs else ""
        also = "" if extra is None else f" and {extra.num_rows:,} extra ones"
        say(f"score: {fit.num_rows:,} samples{also} × {state.epoch} epochs{early} in {taken} → {out}")
    return artifact


def make_scoring_fit(
    config: ScoreConfig,
    dataset: Dataset,
    coreset: Artifact | None,
    initial: Artifact | None = None,
    extra: ExtraData | None = None,
) -> Fit:
    """The training run that scores are taken in.

    Args:
        config: of the scoring run.
        dataset: a finished one.
        coreset: whose samples are scored; the whole training split if None.
        initial: the checkpoint it starts from, see ``run_inputs``; random weights if None.
        extra: rows that are mixed into every batch, from ``extra_data.extra_data``; None without ``extra_dataset``.

    Raises:
        EasyCoreError: features are to be recorded, and the network does not end in a linear layer; or the softmax, and
            it is too large.
    """
    fit = make_fit(config, dataset, coreset, initial=initial, extra=extra, record_scores=config.score_pass != "eval",
                   objective=None if config.training == "standard" else config,
                   score_batch_size=config.score_batch_size)  # fmt: skip
    if "kd" in config.record:
        check_size(fit.num_rows, dataset.num_classes)
    if "features" in config.record:
        try:
            check_last_layer(build_model(**fit.model), dataset.image_shape)
        except ValueError as error:
            raise EasyCoreError(f"record features: {error}; score {config.model} without it") from error
    return fit


def describe_scoring(config: ScoreConfig, path: str, status: str) -> TrackedRun:
    """The MLflow run of the scoring run in a folder, and its status if it is not finished."""
    return describe_training_run(path, "score", "scoring_run", to_dict(config), status)


def _train_and_score(config: ScoreConfig, fit: Fit, dataset: Dataset, made: Claim, tracker: Tracker) -> State:
    """Train and score on Ray Train."""
    recorder = make_recorder(config, fit, dataset, made.path, _lists_of(made))
    run = describe_scoring(config, made.path, "RUNNING")
    return fit_tracked(fit, config, made, run, tracker, label="score", recorder=recorder)


def make_recorder(config: ScoreConfig, fit: Fit, dataset: Dataset, folder: str, lists: str) -> Recorder:
    """What records the scores of a run; writes which samples those are.

    Args:
        config: of the run.
        fit: its training.
        dataset: a finished one, of the main rows.
        folder: of the run: ``table/`` goes there, and ``extra/table/`` where there are extra rows.
        lists: folder of the lists of parts.
    """

    def record(samples: pa.Table, folder: str, lists: str, stop_when_stable: float | None) -> ScoreRecorder:
        table = paths.join(folder, "table")
        write_samples(table, samples)
        return ScoreRecorder(
            table=table,
            lists=lists,
            epochs=config.epochs,
            every=config.score_every,
            score_pass=config.score_pass,
            initial_pass=config.initial_pass,
            num_samples=samples.num_rows,
            checksum=id_checksum(samples["sample_id"].to_numpy()),
            stop_when_stable=stop_when_stable,
            features=paths.join(folder, FEATURE_TABLE) if "features" in config.record else None,
            softmax=paths.join(folder, SOFTMAX) if "kd" in config.record else None,
        )

    main = record(scored_samples(dataset, fit.read_sample_ids()), folder, lists, config.stop_when_stable)
    if fit.extra is None:
        return main
    samples = scored_samples(open_dataset(fit.extra.dataset), fit.read_extra_ids())
    extra = record(samples, paths.join(folder, EXTRA_SCORES), paths.join(lists, EXTRA_SCORES), None)
    return MixedRecorder(main, extra, fit.segments().count, fit.extra.labels)


def _lists_of(made: Claim) -> str:
    """Folder of a run's lists of parts, beside its training states."""
    claimed = {"identity": made.identity, "nonce": made.nonce}
    return paths.join(made.path, "commits", train_run_name("score", claimed))


def scored_samples(dataset: Dataset, sample_ids: np.ndarray | None) -> pa.Table:
    """The scored samples, sorted by id: sample_id int64, label int32, input_norm float64.

    Args:
        dataset: a finished one.
        sample_ids: int64 (n,), ascending, ids of the training split; the whole split if None.
    """
    samples = dataset.index("train", ["sample_id", "label", "input_norm"])
    if sample_ids is None:
        return samples
    return samples.take(np.searchsorted(samples["sample_id"].to_numpy(), sample_ids))


def _finish_run(
    config: ScoreConfig, made: Claim, parents: dict[str, Artifact], state: State, fit: Fit, seconds: float
) -> Artifact:
    """Write the manifests of a run and what is in it, that of the run last."""
    lists, extra = _lists_of(made), {}
    if fit.extra is not None:
        parts = read_part_lists(paths.join(lists, EXTRA_SCORES), state.carried[CARRIED_EXTRA + "part_lists"])
        inside = made.inside(EXTRA_SCORES, "scoring_run", content_hash(made.identity, EXTRA_SCORES))
        sources = fit.describe_sources(state.step)
        # The validation split has the classes of the main rows.
        placed = state.carried.get(CARRIED_EXTRA + "feature_parts", [])
        carried = {**state.carried, VAL_LOSSES: [], "feature_parts": placed}
        other = replace(state, history=extra_history(state.history), carried=carried)
        extra["extra_scores"] = _finish_scores(config, inside, extra_parents(parents), other, parts, seconds, **sources)
    parts = read_part_lists(lists, state.carried["part_lists"])
    details = fit.describe_sources(state.step)
    return _finish_scores(config, made, parents, state, parts, seconds, more_parents=extra, **details)


def _finish_scores(
    config: ScoreConfig,
    made: Claim,
    parents: dict[str, Artifact],
    state: State,
    parts: list[ScorePart],
    seconds: float,
    *,
    more_parents: Mapping[str, Artifact] | None = None,
    **details: Any,
) -> Artifact:
    """Finish the table of these parts, reduce it, and finish the run that holds both."""
    device_seconds = sum(
        (entry["train_seconds"] + entry.get("score_seconds", 0.0)) * entry["num_workers"] for entry in state.history
    )
    table = finish(
        made.inside("table", "score_table", made.identity),
        fingerprint=fingerprint(parts),
        config=to_dict(config),
        parents=parents,
        counts={
            "samples": sum(part.rows for part in parts if part.epoch == parts[-1].epoch),
            "rows": sum(part.rows for part in parts),
            "bytes": sum(part.num_bytes for part in parts),
        },
        wall_seconds=seconds,
        device_seconds=device_seconds,
        num_workers=max(entry["num_workers"] for entry in state.history),
        devices=state.carried.get("devices", []),
        steps=state.step,
        epochs=state.history,
        parts=[part.to_dict() for part in parts],
        val_losses=state.carried.get(VAL_LOSSES, []),
    )
    if "kd" in config.record:
        paths.delete_tree(paths.join(made.path, SOFTMAX))
    features = _finish_features(config, made, {**parents, "score_table": table}, state)
    started = time.monotonic()
    hardness = reduce(ReduceConfig(out=paths.join(made.path, "hardness"), scores=made.path))
    return finish(
        made,
        fingerprint=hardness.fingerprint,
        config=to_dict(config),
        parents=parents | {"score_table": table, "hardness_table": hardness} | features | dict(more_parents or {}),
        counts=table.manifest["counts"],
        wall_seconds=seconds + time.monotonic() - started,
        device_seconds=device_seconds,
        epochs=state.history,
        **details,
    )


def _finish_features(
    config: ScoreConfig, made: Claim, parents: dict[str, Artifact], state: State
) -> dict[str, Artifact]:
    """The feature table of a run, as a parent of it; nothing where features were not recorded."""
    parts = [ScorePart.from_dict(entry) for entry in state.carried.get("feature_parts", [])]
    if not parts:
        return {}
    inside = made.inside(FEATURE_TABLE, "feature_table", made.identity)
    found = finish(
        inside,
        fingerprint=fingerprint(parts),
        config=to_dict(config),
        parents=parents,
        counts={
            "samples": sum(part.rows for part in parts),
            "bytes": sum(part.num_bytes for part in parts),
        },
        wall_seconds=0.0,
        parts=[part.to_dict() for part in parts],
        **describe_features(parts, inside.path),
    )
    return {"feature_table": found}
