"""Draw a finished sweep: ``python -m jobs.report --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import ReportConfig
from easycore_ray.reporting.report import report
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact


def main(config: ReportConfig) -> Artifact | None:
    """Report, and say where the page is."""
    page = report(config)
    if page is not None:
        print(f"report: {paths.join(page.path, 'report.html')}")
    return page


if __name__ == "__main__":
    run(ReportConfig, main)
