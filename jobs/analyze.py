"""Test the paper's claims on your own data: ``python -m jobs.analyze --help``."""

from easycore_ray.analysis.analyze import Analysis, analyze
from easycore_ray.cli import run, show
from easycore_ray.config.experiments import AnalyzeConfig


def main(config: AnalyzeConfig) -> Analysis:
    """Analyze, then say of every claim whether it holds, and where the page is."""
    done = analyze(config)
    for claim in done.claims:
        show(f"{claim['claim']}\n  {claim['outcome']} here: {claim['sentence']}")
    show(f"analysis: {done.page}")
    return done


if __name__ == "__main__":
    run(AnalyzeConfig, main)
