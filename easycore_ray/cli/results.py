"""What the command lines do after a verb: show its result, say where to look further, set the exit code."""

import json
import os
import sys
import warnings
from typing import Any

from easycore_ray.storage import paths


def show(text: str) -> None:
    """Print a result; no error if the reader (``| head``) has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_pipeline(config: Any) -> Any:
    """Run the pipeline, then show the table, the report and the line that opens MLflow."""
    from easycore_ray.experiments.pipeline import pipeline
    from easycore_ray.reporting.report import print_summary

    done = pipeline(config)
    show(print_summary(done.path))
    show(f"report: {done.page}")
    _show_runs(done.manifest["config"]["tracking_uri"])
    return done


def run_sweep(config: Any) -> Any:
    """Sweep, then show the table and the line that opens MLflow."""
    from easycore_ray.experiments.sweep import sweep
    from easycore_ray.reporting.report import print_summary
    from easycore_ray.tracking.addresses import default_uri

    done = sweep(config)
    show(print_summary(done.path))
    _show_runs(done.manifest["config"]["tracking_uri"] or default_uri(done.path))
    return done


def run_study(config: Any) -> Any:
    """Run what is missing of a study, then show the table."""
    from easycore_ray.experiments.study import study
    from easycore_ray.reporting.report import print_summary

    done = study(config)
    show(print_summary(done.path))
    return done


def run_report(config: Any) -> Any:
    """Report, then show where the page is."""
    from easycore_ray.reporting.report import report

    done = report(config)
    show(f"report: {done.page}")
    return done


def run_analyze(config: Any) -> Any:
    """Analyze, then show of every claim whether it holds, and where the page is."""
    from easycore_ray.analysis.analyze import analyze

    done = analyze(config)
    for claim in done.claims:
        show(f"{claim['claim']}\n  {claim['outcome']} here: {claim['sentence']}")
    show(f"analysis: {done.page}")
    return done


def run_audit(config: Any) -> Any:
    """Audit, then show what was found and where the page is."""
    from easycore_ray.inspection.audit import audit

    done = audit(config)
    for sentence in done.sentences:
        show(sentence)
    show(f"audit: {done.page}")
    return done


def run_evaluate(config: Any) -> Any:
    """Evaluate; exit code 1 if the figures are suspicious."""
    from easycore_ray.evaluation.evaluate import evaluate
    from easycore_ray.evaluation.sanity_checks import SuspiciousEvaluation, verdict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspiciousEvaluation)  # printed below, as the last word
        done = evaluate(config)
    if signs := done.summary["suspicious"]:
        print("error:", verdict(signs, done.path), file=sys.stderr)
        raise SystemExit(1)
    return done


def run_inspect(config: Any) -> dict[str, Any]:
    """Show what is known of an artifact; exit code 1 if --verify found something wrong."""
    from easycore_ray.inspection.inspect import inspect
    from easycore_ray.reporting.inspect_text import to_text

    facts = inspect(config)
    show(json.dumps(facts, indent=2) if config.json else to_text(facts))
    if any(entry["problems"] for entry in facts.get("verified", [])):
        raise SystemExit(1)
    return facts


def run_status(config: Any) -> Any:
    """Say whether it is finished; exit code 3 if not, which no other outcome has."""
    from easycore_ray.inspection.status import status

    found = status(config)
    show(f"{'finished' if found.finished else 'unfinished'}: {found.path}: {found.reason}")
    if not found.finished:
        raise SystemExit(3)
    return found


def run_clean(config: Any) -> Any:
    """Clean, and show each file with its size and reason."""
    from easycore_ray.inspection.clean import clean
    from easycore_ray.reporting.inspect_text import bytes_text, count_text

    found = clean(config)
    root = paths.absolute(config.path)
    lines: list[str] = []
    for reason in sorted({leftover.reason for leftover in found}):
        lines.append(f"{reason}:")
        mine = [each for each in found if each.reason == reason]
        lines += [f"  {bytes_text(each.size):>10}  {each.path[len(root) + 1 :]}" for each in mine]
    total = f"{count_text(len(found), 'file')}, {bytes_text(sum(each.size for each in found))}"
    if not found:
        lines.append(f"nothing to remove in {root}")
    elif config.yes:
        lines.append(f"removed {total} from {root}")
    else:
        lines.append(f"would remove {total} from {root}; pass --yes to do it")
    show("\n".join(lines))
    return found


def _show_runs(tracking_uri: str) -> None:
    """Show the line that opens MLflow, unless tracking is off."""
    from easycore_ray.tracking.addresses import ui_command

    if tracking_uri != "none":
        show(f"runs:   {ui_command(tracking_uri)}")
