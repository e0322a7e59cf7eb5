"""Identity of a training run: its configuration, its inputs, and whether its workers keep their rows or stream them."""

import math
from collections.abc import Mapping

from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.data.coreset import count_run_rows
from easycore_ray.data.dataset import Dataset, image_bytes_per_row
from easycore_ray.engine.extra_data import EXTRA_DATASET, count_extra_rows
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.storage.artifact import Artifact, Claim


def ways_of_loading(config: TrainConfig | ScoreConfig, dataset: Dataset, num_rows: int) -> list[str]:
    """``cached`` or ``streamed`` for each number of workers the run may have, fewest first.

    Args:
        config: of the run.
        dataset: its images.
        num_rows: samples of an epoch.
    """
    workers = range(config.min_workers, config.max_workers + 1)
    kept = [keeps_rows(dataset, num_rows, count, config.cache_gib, config.augment) for count in workers]
    return ["cached" if keeps else "streamed" for keeps in kept]


def keeps_rows(dataset: Dataset, num_rows: int, workers: int, cache_gib: float, augment: str) -> bool:
    """Whether each worker keeps its rows: the largest share takes at most ``cache_gib`` GiB of uint8 pixels.

    Views for ``imagenet`` are parts of the stored images, drawn anew each epoch, so there is nothing to keep.

    Args:
        dataset: a finished one.
        num_rows: trained on.
        workers: that share the rows.
        cache_gib: what each keeps at most.
        augment: of the training.
    """
    share = math.ceil(num_rows / workers)
    return augment != "imagenet" and share * image_bytes_per_row(dataset) <= cache_gib * 2**30


def keeps_extra_rows(
    dataset: Dataset, num_rows: int, extra: Dataset, extra_rows: int, workers: int, cache_gib: float, augment: str
) -> bool:
    """Whether each worker keeps its extra rows: what its main rows leave of ``cache_gib`` is enough for them.

    Args:
        dataset: of the main rows.
        num_rows: of them.
        extra: dataset of the extra rows.
        extra_rows: of them.
        workers: that share both.
        cache_gib: what each keeps at most.
        augment: of the training.
    """
    kept = keeps_rows(dataset, num_rows, workers, cache_gib, augment)
    used = math.ceil(num_rows / workers) * image_bytes_per_row(dataset) if kept else 0
    return keeps_rows(extra, extra_rows, workers, cache_gib - used / 2**30, augment)


def run_identity(kind: str, config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> str:
    """Hash (hex) of what decides a checkpoint or scoring run.

    Args:
        kind: ``checkpoint`` or ``scoring_run``.
        config: of the run.
        parents: from ``run_inputs.open_run_inputs``.
    """
    return artifact_identity(kind, config, parents, **_loading(config, parents))


def claim_run(kind: str, config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> Artifact | Claim:
    """Claim ``config.out`` for a run; the finished artifact if it is there. Arguments as in ``run_identity``.

    Raises:
        EasyCoreError: see ``storage.artifact.claim``.
    """
    return claim_artifact(kind, config, parents, **_loading(config, parents))


def _loading(config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """How rows are loaded with each number of workers the run may have, as further fields of an identity."""
    dataset = Dataset(parents["dataset"].path, parents["dataset"].manifest)
    num_rows = count_run_rows(dataset, parents)
    found = {"loading": ways_of_loading(config, dataset, num_rows)}
    if EXTRA_DATASET in parents:
        extra = Dataset(parents[EXTRA_DATASET].path, parents[EXTRA_DATASET].manifest)
        rows = dataset, num_rows, extra, count_extra_rows(parents)
        workers = range(config.min_workers, config.max_workers + 1)
        kept = [keeps_extra_rows(*rows, count, config.cache_gib, config.augment) for count in workers]
        found["extra_loading"] = ["cached" if keeps else "streamed" for keeps in kept]
    return found
