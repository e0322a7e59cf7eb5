"""Tell what an artifact is: ``python -m jobs.inspect runs/digits/scores``."""

import json
from typing import Any

from easycore_ray.config import InspectConfig
from easycore_ray.drawing.facts import to_text
from easycore_ray.inspection import inspect
from jobs.command import run, show


def main(config: InspectConfig) -> dict[str, Any]:
    """Print what is known; exit code 1 if --verify found something wrong."""
    facts = inspect(config)
    show(json.dumps(facts, indent=2) if config.json else to_text(facts))
    if any(entry["problems"] for entry in facts.get("verified", [])):
        raise SystemExit(1)
    return facts


if __name__ == "__main__":
    run(InspectConfig, main)
