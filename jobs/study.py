"""Compare coresets over whole repetitions: ``python -m jobs.study --preset cifar10-cpu --dataset … --out …``."""

from easycore_ray.cli import run
from easycore_ray.config.experiments import StudyConfig
from easycore_ray.experiments.study import Study, study
from easycore_ray.reporting.report import print_summary


def main(config: StudyConfig) -> Study:
    """Run what is missing, then show the table."""
    done = study(config)
    print(print_summary(done.path))
    return done


if __name__ == "__main__":
    run(StudyConfig, main)
