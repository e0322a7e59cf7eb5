"""Test the paper's claims on your own data: ``python -m jobs.analyze --help``."""

from easycore_ray.analysis.analyze import ANALYSIS_PAGE, analyze
from easycore_ray.cli import run, show
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact


def main(config: AnalyzeConfig) -> Artifact | None:
    """Analyze, then say of every claim whether it holds, and where the page is."""
    done = analyze(config)
    if done is not None:
        for claim in done.manifest["claims"]:
            show(f"{claim['claim']}\n  {claim['outcome']} here: {claim['sentence']}")
        show(f"analysis: {paths.join(done.path, ANALYSIS_PAGE)}")
    return done


if __name__ == "__main__":
    run(AnalyzeConfig, main)
