"""Train and evaluate arms × fractions × objectives × seeds: ``python -m jobs.sweep --help``."""

from easycore_ray.cli import run
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.experiments.sweep import Sweep, sweep
from easycore_ray.reporting.report import print_summary
from easycore_ray.tracking.mlflow import default_uri, ui_command


def main(config: SweepConfig) -> Sweep:
    """Sweep, then show the table and where to look further."""
    swept = sweep(config)
    print(print_summary(swept.path))
    uri = swept.manifest["config"]["tracking_uri"] or default_uri(swept.path)
    if uri != "none":
        print(f"runs: {ui_command(uri)}")
    return swept


if __name__ == "__main__":
    run(SweepConfig, main)
