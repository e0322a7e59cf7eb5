"""Which fields of a configuration decide its result, and so belong to an artifact's identity."""

import dataclasses
from typing import Any

from easycore_ray.config.base import to_dict
from easycore_ray.config.experiments import StudyConfig
from easycore_ray.config.fields import ADVERSARIAL

# Fields that say where and how a job runs, not what it computes.
_NOT_IDENTITY = {
    "out", "overwrite", "num_workers", "cpus_per_worker", "gpus_per_worker", "threads_per_worker",
    "max_failures", "max_concurrent_trials", "keep_going", "materialize", "cache_gib", "tracking_uri", "experiment",
    # inputs: their fingerprints are part of the identity instead
    "source", "test_source", "classes", "dataset", "scores", "coreset", "checkpoint", "sweep", "user_scores", "results",
}  # fmt: skip


# Fields that came later: at their default they are left out, so that what was made before is still recognised.
_LATER = {
    "RecipeConfig": {"compile"},
    "EvaluateConfig": {"weights"},
    "SweepConfig": {"attack"},
    "PipelineConfig": {"attack"},
}


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields that change what a job computes."""
    fields = to_dict(config)
    unused = set() if fields.get("schedule") == "multistep" else {"milestones"}
    later = set().union(*(_LATER.get(base.__name__, set()) for base in type(config).__mro__))
    unused |= {spec.name for spec in dataclasses.fields(config)
               if spec.name in later and getattr(config, spec.name) == spec.default}  # fmt: skip
    if not ADVERSARIAL & {*_as_list(fields.get("training"))} or not fields.get("val_attack_steps"):
        unused.add("val_attack_steps")
    if "trades" in _as_list(fields.get("training")) or isinstance(config, StudyConfig):
        # Before, the clean batch was counted once in the running statistics: such runs are not these.
        fields["trades_running_statistics"] = "natural, adversarial, natural"
    return {key: value for key, value in fields.items() if key not in _NOT_IDENTITY | unused}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
