"""What select() would do, without doing it."""

from easycore_ray.config.stages import CoresetConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.core.selection import METHODS, budget
from easycore_ray.scoring.hardness_table import open_hardness
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# A row of a coreset, as written: id, score, label, source key, and the id once more for NumPy.
_BYTES_PER_SAMPLE = 60


def plan_select(config: CoresetConfig, _measure: bool = False) -> WorkPlan:
    """The plan of a selection: how many samples it keeps; there is nothing to measure."""
    from easycore_ray.selection.select import (
        coreset_identity,
        count_population,
        open_exclusion,
        open_population,
        open_selection_inputs,
        reduced_folders,
    )

    out, first = paths.absolute(config.out), ""
    make = [folder for folder in reduced_folders(config) if not paths.exists(paths.join(folder, "manifest.json"))]
    # The samples are the same ones, so their number is known before they are reduced.
    parents, dataset = open_selection_inputs(config, (lambda scores, _: open_hardness(scores)) if make else None)
    if make:
        first = f"reduce → {' and '.join(make)}, and "
    excluded = open_exclusion(config, dataset)
    total = count_population(parents, dataset)
    if excluded is not None:
        total = sum(partition.rows for partition in open_population(parents, dataset, excluded))
    try:
        kept = budget(total, config.fraction)
        METHODS[config.method].check_budget(kept, total)
    except ValueError as error:
        raise EasyCoreError(str(error)) from error
    images = paths.join(out, "dataset")
    copied = f", and copy their images → {images}" if config.materialize else ""
    return plan_for(
        "select",
        config,
        "coreset",
        coreset_identity(config, parents, excluded),
        work=f"{first}keep {kept:,} of {total:,} samples by {config.method}{copied}",
        samples=kept,
        bytes_written=kept * _BYTES_PER_SAMPLE + (kept * dataset.layout.image_bytes if config.materialize else 0),
        makes=(*make, out, *([images] if config.materialize else [])),
    )
