"""What report() would do, without doing it."""

from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.inspection import ReportConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import open_artifact


def plan_report(config: ReportConfig, _measure: bool = False) -> WorkPlan:
    """The plan of a report; there is nothing to measure."""
    sweep, out = open_artifact(config.sweep, "sweep"), paths.absolute(config.out)
    return plan_for(
        "report",
        config,
        "report",
        artifact_identity("report", config, {"sweep": sweep}),
        work=f"draw {sweep.manifest['counts']['rows']} result rows of {sweep.path}",
        makes=(paths.join(out, "report.html"), paths.join(out, "plots")),
    )
