"""Draw a finished sweep: ``python -m jobs.report --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import ReportConfig
from easycore_ray.reporting.report import Report, report


def main(config: ReportConfig) -> Report:
    """Report, and say where the page is."""
    drawn = report(config)
    print(f"report: {drawn.page}")
    return drawn


if __name__ == "__main__":
    run(ReportConfig, main)
