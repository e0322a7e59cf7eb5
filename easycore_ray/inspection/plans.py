"""What export() would do, without doing it."""

from easycore_ray.config.inspection import ExportConfig
from easycore_ray.config.work_plan import WorkPlan
from easycore_ray.engine.checkpoint_files import weights_files
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import open_artifact


def plan_export(config: ExportConfig, _measure: bool = False) -> WorkPlan:
    """The plan of an export; there is nothing to measure."""
    checkpoint, out = open_artifact(config.checkpoint, "checkpoint"), paths.absolute(config.out)
    name = weights_files(checkpoint.manifest).get(config.weights)
    there = paths.exists(out) and not config.overwrite
    return WorkPlan(
        verb="export",
        work=f"write the {config.weights} weights of {checkpoint.path} as {config.format}",
        out=out,
        bytes_written=paths.size(paths.join(checkpoint.path, name)) if name else None,
        makes=(out,),
        warnings=(f"{out} is there; it would be refused without --overwrite",) if there else (),
    )
