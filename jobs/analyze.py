"""Test the paper's claims on your own data: ``python -m jobs.analyze --help``."""

from easycore_ray import paths
from easycore_ray.analysis import PAGE, analyze
from easycore_ray.config import AnalyzeConfig
from easycore_ray.manifest import Artifact
from jobs.command import run, show


def main(config: AnalyzeConfig) -> Artifact | None:
    """Analyze, then say of every claim whether it holds, and where the page is."""
    done = analyze(config)
    if done is not None:
        for claim in done.manifest["claims"]:
            show(f"{claim['claim']}\n  {claim['outcome']} here: {claim['sentence']}")
        show(f"analysis: {paths.join(done.path, PAGE)}")
    return done


if __name__ == "__main__":
    run(AnalyzeConfig, main)
