"""Every stage in order: ``python -m jobs.pipeline --preset digits --out runs/digits``."""

from easycore_ray.cli import run
from easycore_ray.config.experiments import PipelineConfig
from easycore_ray.experiments.pipeline import Pipeline, pipeline
from easycore_ray.reporting.report import print_summary
from easycore_ray.tracking.mlflow import ui_command


def main(config: PipelineConfig) -> Pipeline:
    """Run the pipeline, then show the table, the report and the line that opens MLflow."""
    done = pipeline(config)
    print(print_summary(done.path))
    print(f"report: {done.page}")
    if (uri := done.manifest["config"]["tracking_uri"]) != "none":
        print(f"runs:   {ui_command(uri)}")
    return done


if __name__ == "__main__":
    run(PipelineConfig, main)
