"""Tell what an artifact is: ``python -m jobs.inspect runs/digits/scores``."""

import json
from typing import Any

from easycore_ray.cli import run, show
from easycore_ray.config.stages import InspectConfig
from easycore_ray.inspection.inspect import inspect
from easycore_ray.reporting.inspect_text import to_text


def main(config: InspectConfig) -> dict[str, Any]:
    """Print what is known; exit code 1 if --verify found something wrong."""
    facts = inspect(config)
    show(json.dumps(facts, indent=2) if config.json else to_text(facts))
    if any(entry["problems"] for entry in facts.get("verified", [])):
        raise SystemExit(1)
    return facts


if __name__ == "__main__":
    run(InspectConfig, main)
