"""What prepare() would do, without doing it."""

from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.data.ingest.sources import is_path, list_configured
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import identity


def dataset_identity(config: PrepareConfig) -> str:
    """What decides a dataset. Sources have no fingerprint before they are read, so here alone their names count."""
    names = {"source": config.source, "test_source": config.test_source, "classes": config.classes}
    places = {
        role: paths.absolute(name) if name and (role == "classes" or is_path(name)) else name
        for role, name in names.items()
    }
    return identity("dataset", {**identity_fields(config), **places}, {})


def plan_prepare(config: PrepareConfig, _measure: bool = False) -> WorkPlan:
    """The plan of an import, as far as a listing of the source shows; nothing is downloaded, and nothing measured."""
    shards = f"shards of about {config.shard_mib:g} MiB"
    work, total = f"import {config.source} into {shards}", 0
    if is_path(config.source):
        source = list_configured(config)
        images = "images" if source.total is None else f"{source.total:,} images"
        classes = "" if source.classes is None else f" in {len(source.classes):,} classes"
        pieces = " and ".join(f"{len(found):,} {split}" for split, found in source.pieces.items())
        work = f"import {images}{classes} from {config.source} ({pieces} pieces) into {shards}"
        total = source.total or 0
    return plan_for(
        "prepare",
        config,
        "dataset",
        dataset_identity(config),
        work=work,
        samples=total,
    )
