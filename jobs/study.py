"""Compare coresets over whole repetitions: ``python -m jobs.study --preset cifar10-cpu --dataset … --out …``."""

from easycore_ray import paths
from easycore_ray.comparison import study
from easycore_ray.config import StudyConfig
from easycore_ray.manifest import Artifact
from easycore_ray.reporting import print_table
from jobs.command import run


def main(config: StudyConfig) -> Artifact | None:
    """Run what is missing, then show the table."""
    done = study(config)
    if done is not None:
        summary = paths.read_json(paths.join(done.path, "summary.json"))
        print(print_table(summary["rows"], summary.get("diverged", ())))
    return done


if __name__ == "__main__":
    run(StudyConfig, main)
