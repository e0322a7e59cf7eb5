"""What export() and audit() would do, without doing it."""

from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.inspection import AuditConfig, ExportConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.data.dataset import Dataset, check_same_dataset, open_dataset
from easycore_ray.engine.checkpoint_files import weights_files
from easycore_ray.scoring.hardness_table import open_hardness
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact


def plan_export(config: ExportConfig, _measure: bool = False) -> WorkPlan:
    """The plan of an export; there is nothing to measure."""
    checkpoint, out = open_artifact(config.checkpoint, "checkpoint"), paths.absolute(config.out)
    name = weights_files(checkpoint.manifest).get(config.weights)
    there = paths.exists(out) and not config.overwrite
    return WorkPlan(
        verb="export",
        work=f"write the {config.weights} weights of {checkpoint.path} as {config.format}",
        out=out,
        bytes_written=paths.size(paths.join(checkpoint.path, name)) if name else None,
        makes=(out,),
        warnings=(f"{out} is there; it would be refused without --overwrite",) if there else (),
    )


def open_audit_inputs(config: AuditConfig) -> tuple[dict[str, Artifact], Dataset]:
    """Parents of an audit by role, and the dataset that was scored.

    Raises:
        EasyCoreError: one is missing, unfinished or does not belong to the other.
    """
    hardness = open_hardness(config.scores)
    dataset = open_dataset(config.dataset or hardness.manifest["dataset"]["path"])
    check_same_dataset(hardness, dataset)
    return {"hardness_table": hardness, "dataset": dataset}, dataset


def plan_audit(config: AuditConfig, _measure: bool = False) -> WorkPlan:
    """The plan of an audit; there is nothing to measure."""
    parents, _ = open_audit_inputs(config)
    samples, out = parents["hardness_table"].manifest["counts"]["samples"], paths.absolute(config.out)
    return plan_for(
        "audit",
        config,
        "audit",
        artifact_identity("audit", config, parents),
        work=f"look for label errors, copies and starved classes among {samples:,} samples",
        samples=samples,
        makes=tuple(paths.join(out, name) for name in ("findings.parquet", "summary.json", "audit.html")),
    )
