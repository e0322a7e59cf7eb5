"""Identity of a training run: its configuration, its inputs, and whether its workers keep their rows or stream them."""

import math
from collections.abc import Mapping

from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.data.coreset import count_run_rows
from easycore_ray.data.dataset import Dataset, image_bytes_per_row
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


def run_identity(kind: str, config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> str:
    """Hash (hex) of what decides a checkpoint or scoring run.

    Args:
        kind: ``checkpoint`` or ``scoring_run``.
        config: of the run.
        parents: from ``run_inputs.open_run_inputs``.
    """
    return artifact_identity(kind, config, parents, loading=_loading(config, parents))


def claim_run(kind: str, config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> Artifact | Claim:
    """Claim ``config.out`` for a run; the finished artifact if it is there. Arguments as in ``run_identity``.

    Raises:
        EasyCoreError: see ``storage.artifact.claim``.
    """
    return claim_artifact(kind, config, parents, loading=_loading(config, parents))


def _loading(config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> list[str]:
    dataset = Dataset(parents["dataset"].path, parents["dataset"].manifest)
    return ways_of_loading(config, dataset, count_run_rows(dataset, parents))
