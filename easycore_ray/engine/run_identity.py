"""Identity of a training run: its configuration, its inputs, and whether its workers keep their rows or stream them."""

from collections.abc import Mapping

from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.data.coreset import count_run_rows
from easycore_ray.data.dataset import Dataset, image_bytes_per_row
from easycore_ray.engine.shares import Share
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.storage.artifact import Artifact, Claim


def ways_of_loading(config: TrainConfig | ScoreConfig, dataset: Dataset, num_rows: int) -> list[str]:
    """``cached`` or ``streamed`` for each number of workers the run may have, fewest first.

    Args:
        config: of the run.
        dataset: its images.
        num_rows: samples of an epoch.
    """
    shares = [Share(num_rows, count, rank=0) for count in range(config.min_workers, config.max_workers + 1)]
    kept = [keeps_rows(share, dataset, config.cache_gib, config.augment) for share in shares]
    return ["cached" if keeps else "streamed" for keeps in kept]


def keeps_rows(share: Share, dataset: Dataset, cache_gib: float, augment: str) -> bool:
    """Whether a worker keeps its rows: they take at most ``cache_gib`` GiB of uint8 pixels.

    Views for ``imagenet`` are parts of the stored images, drawn anew each epoch, so there is nothing to keep.
    """
    return augment != "imagenet" and share.size * image_bytes_per_row(dataset) <= cache_gib * 2**30


def run_identity(kind: str, config: TrainConfig | ScoreConfig, parents: Mapping[str, Artifact]) -> str:
    """Hash (hex) of what decides a checkpoint or scoring run.

    Args:
        kind: ``checkpoint`` or ``scoring_run``.
        config: of the run.
        parents: from ``open_run_data``.
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
