"""Train and evaluate arms × fractions × objectives × seeds: ``python -m jobs.sweep --help``."""

from easycore_ray import paths
from easycore_ray.config import SweepConfig
from easycore_ray.manifest import Artifact
from easycore_ray.reporting import print_table
from easycore_ray.tracking import default_uri, ui_command
from easycore_ray.tuning import sweep
from jobs.command import run


def main(config: SweepConfig) -> Artifact | None:
    """Sweep, then show the table and where to look further."""
    swept = sweep(config)
    if swept is not None:
        summary = paths.read_json(paths.join(swept.path, "summary.json"))
        print(print_table(summary["rows"], summary.get("diverged", ())))
        uri = swept.manifest["config"]["tracking_uri"] or default_uri(swept.path)
        if uri != "none":
            print(f"runs: {ui_command(uri)}")
    return swept


if __name__ == "__main__":
    run(SweepConfig, main)
