"""The verbs of the command line and where their parts are, by name: listing them imports none of them."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A verb of the command line. Parts are named ``module:name``, modules relative to the package."""

    summary: str
    """One line for the list of verbs."""
    config: str
    """Its configuration."""
    function: str
    """What runs it, called with the configuration."""
    plan: str | None = None
    """What ``--dry-run`` calls with the configuration and whether to measure; None: the verb has no dry run.

    The function that ``VERB.plan`` calls, named here because its module loads without Ray and PyTorch.
    """

    @property
    def kind(self) -> type[Any]:
        """The class of the configuration."""
        return load(f"config.{self.config}")

    def run(self, config: Any) -> Any:
        """Do it."""
        return load(self.function)(config)


COMMANDS = {
    "prepare": Command("Import images as a dataset in shards", "stages:PrepareConfig",
                       "data.ingest.pipeline:prepare", "data.ingest.plans:plan_prepare"),
    "score": Command("Score every sample in a training run, then reduce", "stages:ScoreConfig",
                     "scoring.score:score", "scoring.plans:plan_score"),
    "reduce": Command("Reduce a score table to one row of hardness per sample", "stages:ReduceConfig",
                      "scoring.reduce:reduce", "scoring.plans:plan_reduce"),
    "coreset": Command("Select the samples to keep", "stages:CoresetConfig",
                       "selection.select:select", "selection.plans:plan_select"),
    "train": Command("Train one model on a dataset or coreset", "stages:TrainConfig",
                     "training.train:train", "training.plans:plan_train"),
    "evaluate": Command("Attack a model; exit code 1 if the figures look too good", "evaluation:EvaluateConfig",
                        "cli.results:run_evaluate", "evaluation.plans:plan_evaluate"),
    "sweep": Command("Train and evaluate methods × fractions × objectives × seeds", "experiments:SweepConfig",
                     "cli.results:run_sweep", "experiments.plans:plan_sweep"),
    "report": Command("Draw a finished sweep as one page", "inspection:ReportConfig",
                      "cli.results:run_report", "reporting.plans:plan_report"),
    "study": Command("Compare coresets over whole repetitions", "experiments:StudyConfig",
                     "cli.results:run_study", "experiments.plans:plan_study"),
    "pipeline": Command("Every stage in order, from images to the report", "experiments:PipelineConfig",
                        "cli.results:run_pipeline", "experiments.plans:plan_pipeline"),
    "analyze": Command("Test the paper's claims on your own data", "experiments:AnalyzeConfig",
                       "cli.results:run_analyze", "analysis.plans:plan_analyze"),
    "audit": Command("Find likely label errors, copies and starved classes", "inspection:AuditConfig",
                     "cli.results:run_audit", "inspection.plans:plan_audit"),
    "export": Command("Write a trained model into one file for use elsewhere", "inspection:ExportConfig",
                      "inspection.export:export", "inspection.plans:plan_export"),
    "inspect": Command("Show what an artifact is; --verify rereads all of it", "inspection:InspectConfig",
                       "cli.results:run_inspect"),
    "status": Command("Tell whether a job is finished: exit code 0, else 3", "inspection:StatusConfig",
                      "cli.results:run_status"),
    "clean": Command("List, and with --yes remove, what no artifact needs", "inspection:CleanConfig",
                     "cli.results:run_clean"),
}  # fmt: skip


def load(name: str) -> Any:
    """What ``module:name`` means, imported now."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"easycore_ray.{module}"), attribute)
