"""What analyze() would do, without doing it."""

from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.reporting.inspect_text import count_text
from easycore_ray.storage import paths


def plan_analyze(config: AnalyzeConfig, _measure: bool = False) -> WorkPlan:
    """The plan of an analysis. Its attacks end when an image is fooled, so there is no figure for them."""
    from easycore_ray.analysis.inputs import open_analysis

    inputs, out = open_analysis(config), paths.absolute(config.out)
    runs, models = len(inputs.runs), len(inputs.models)
    return plan_for(
        "analyze",
        config,
        "analysis",
        artifact_identity("analysis", config, inputs.parents),
        work=f"compare {count_text(runs, 'scoring run')} and attack {len(inputs.drawn):,} "
        f"training samples with each of {count_text(models, 'model')}",
        samples=len(inputs.drawn),
        makes=(paths.join(out, "analysis.html"), paths.join(out, "samples.parquet")),
    )
