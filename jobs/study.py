"""Compare coresets over whole repetitions: ``python -m jobs.study --preset cifar10-cpu --dataset … --out …``."""

from easycore_ray.comparison import study
from easycore_ray.config import StudyConfig
from easycore_ray.manifest import Artifact
from easycore_ray.reporting import print_summary
from jobs.command import run


def main(config: StudyConfig) -> Artifact | None:
    """Run what is missing, then show the table."""
    done = study(config)
    if done is not None:
        print(print_summary(done.path))
    return done


if __name__ == "__main__":
    run(StudyConfig, main)
