"""What report() would do, without doing it."""

from easycore_ray.config.stages import ReportConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, identity, open_artifact


def report_identity(config: ReportConfig, sweep: Artifact) -> str:
    """What decides the content of a report."""
    return identity("report", {"title": config.title, "note": config.note}, {"sweep": sweep.fingerprint})


def plan_report(config: ReportConfig, _measure: bool = False) -> WorkPlan:
    """The plan of a report; there is nothing to measure."""
    sweep, out = open_artifact(config.sweep, "sweep"), paths.absolute(config.out)
    return plan_for(
        "report",
        out,
        "report",
        report_identity(config, sweep),
        overwrite=config.overwrite,
        work=f"draw {sweep.manifest['counts']['rows']} result rows of {sweep.path}",
        makes=(paths.join(out, "report.html"), paths.join(out, "plots")),
    )
