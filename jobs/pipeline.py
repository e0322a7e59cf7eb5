"""Every stage in order: ``python -m jobs.pipeline --preset digits --out runs/digits``."""

from easycore_ray import paths
from easycore_ray.config import PipelineConfig
from easycore_ray.manifest import Artifact
from easycore_ray.reporting import print_summary
from easycore_ray.tracking import ui_command
from easycore_ray.workflow import pipeline
from jobs.command import run


def main(config: PipelineConfig) -> Artifact | None:
    """Run the pipeline, then show the table, the report and the line that opens MLflow."""
    done = pipeline(config)
    if done is not None:
        print(print_summary(done.path))
        print(f"report: {paths.join(done.path, 'report.html')}")
        if (uri := done.manifest["config"]["tracking_uri"]) != "none":
            print(f"runs:   {ui_command(uri)}")
    return done


if __name__ == "__main__":
    run(PipelineConfig, main)
