"""Draw a finished sweep: ``python -m jobs.report --help``."""

from easycore_ray import paths
from easycore_ray.config import ReportConfig
from easycore_ray.manifest import Artifact
from easycore_ray.reporting import report
from jobs.command import run


def main(config: ReportConfig) -> Artifact | None:
    """Report, and say where the page is."""
    page = report(config)
    if page is not None:
        print(f"report: {paths.join(page.path, 'report.html')}")
    return page


if __name__ == "__main__":
    run(ReportConfig, main)
