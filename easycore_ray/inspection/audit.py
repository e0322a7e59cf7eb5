"""audit(): what the scores say of the data itself, as a table of findings and a page.

Three things are looked for: labels that are likely wrong, by the rank of a score; images that are there more than once,
by their hash; and classes of which a global cut would keep next to nothing. No Ray is started and nothing is trained.
The columns that are needed, about 60 bytes a sample, are held in this process.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.inspection import AuditConfig
from easycore_ray.core.data_audit import ClassShares, class_shares, first_equals, places_of_hardest, separability
from easycore_ray.core.lowest import Ids
from easycore_ray.core.selection import is_higher_harder
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.index import index_spans, read_index_range, read_index_rows
from easycore_ray.data.samples import read_split
from easycore_ray.inspection.plans import open_audit_inputs, plan_audit
from easycore_ray.reporting.audit_page import AuditPictures, render_audit
from easycore_ray.reporting.figures import percent
from easycore_ray.reporting.image_grid import Images
from easycore_ray.reporting.inspect_text import count_text
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import say
from easycore_ray.scoring.hardness_table import columns_of, hardness_column, read_hardness
from easycore_ray.selection.exclusion import FINDINGS
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, finish, giving_back
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

AUDIT_PAGE = "audit.html"
FINDINGS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        # See ``config.fields.FindingKind``.
        pa.field("kind", pa.string(), nullable=False),
        # The score that label errors are ranked by, as stored.
        pa.field("score", pa.float64(), nullable=False),
        # Within its kind, from 1.
        pa.field("rank", pa.int32(), nullable=False),
        # Of equal images: the lowest sample_id among them.
        pa.field("group", pa.int64()),
    ]
)
_SHOWN_ERRORS = 48
_SHOWN_GROUPS = 20
_SHOWN_COPIES = 6
_SPAN_ROWS = 1 << 20


class Audit(Artifact):
    """A finished audit."""

    @property
    def page(self) -> str:
        """Path of the self-contained HTML page."""
        return paths.join(self.path, AUDIT_PAGE)

    @property
    def sentences(self) -> list[str]:
        """What was found, in words."""
        return self.manifest["sentences"]

    @property
    def summary(self) -> dict[str, Any]:
        """Every number of the page."""
        return paths.read_json(paths.join(self.path, "summary.json"))

    def findings(self) -> pa.Table:
        """A row for each finding, of ``FINDINGS_SCHEMA``."""
        return pq.read_table(pa.BufferReader(paths.read_bytes(paths.join(self.path, FINDINGS))))


@dataclass(frozen=True)
class AuditedSamples:
    """All scored samples, sorted by id; (N,) each.

    Attributes:
        ids: int64.
        labels: integers.
        scores: float64, the score for label errors as stored.
        hardness: float64, the same, higher is harder.
        cut_hardness: float64, the score of the global cut, higher is harder.
    """

    ids: Ids
    labels: NDArray[np.integer]
    scores: NDArray[np.float64]
    hardness: NDArray[np.float64]
    cut_hardness: NDArray[np.float64]


@dataclass(frozen=True)
class AuditFindings:
    """Places of the samples that were found, by kind, in the order of their ranks, and groups of equal images.

    Attributes:
        label_errors: int64 (m,).
        label_conflicts: int64 (m,), all of every group whose labels differ.
        duplicates: int64 (m,), of every group with one label all but the first.
        groups: int64 (N,), place of the first image that is equal; −1 where there is no other.
        shares: of the classes in the global cut.
    """

    label_errors: Ids
    label_conflicts: Ids
    duplicates: Ids
    groups: Ids
    shares: ClassShares


@verb(AuditConfig, gives=Audit, plan=plan_audit)
def audit(config: AuditConfig) -> Artifact:
    """Look for likely label errors, equal images and classes that a global cut would starve.

    The folder holds ``findings.parquet`` (``FINDINGS_SCHEMA``; what ``coreset --exclude`` leaves out),
    ``summary.json`` (every number) and ``audit.html`` (a page with the pictures, which loads nothing).

    Returns:
        The audit.

    Raises:
        EasyCoreError: scores and dataset do not belong together, or a score is missing or not a number.
    """
    started = time.monotonic()
    parents, dataset = open_audit_inputs(config)
    made = claim_artifact("audit", config, parents)
    if isinstance(made, Artifact):
        say(f"audit: {made.path} is finished, reused")
        return made
    with giving_back(made):
        samples = _read_samples(config, parents["hardness_table"], dataset)
        try:
            found = _find(config, samples, dataset)
        except ValueError as error:
            if isinstance(error, EasyCoreError):
                raise
            raise EasyCoreError(str(error)) from error
    findings = _table(samples, found, dataset)
    summary = _summarise(config, samples, found, dataset)
    pictures = _pictures(samples, found, dataset)
    lineage = {"parents": {role: parent.as_parent() for role, parent in parents.items()}, "config": to_dict(config)}
    sink = pa.BufferOutputStream()
    pq.write_table(findings, sink, compression="zstd")
    files = {
        FINDINGS: sink.getvalue().to_pybytes(),
        "summary.json": json.dumps(summary, indent=2).encode(),
        AUDIT_PAGE: render_audit(summary, pictures, dataset.classes, lineage).encode(),
    }
    for name, content in files.items():
        paths.write_bytes(paths.join(made.path, name), content)
    artifact = finish(
        made,
        fingerprint=content_hash(files[FINDINGS], files["summary.json"]),
        config=to_dict(config),
        parents=parents,
        counts={"samples": len(samples.ids), "findings": findings.num_rows},
        wall_seconds=time.monotonic() - started,
        files=[{"path": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()],
        sentences=summary["sentences"],
    )
    say(f"audit: {count_text(findings.num_rows, 'finding')} in {len(samples.ids):,} samples → {made.path}")
    return artifact


# --- what is looked for -------------------------------------------------------------------------


def _read_samples(config: AuditConfig, hardness: Artifact, dataset: Dataset) -> AuditedSamples:
    names = dict.fromkeys(["sample_id", "label", *columns_of(config.score), *columns_of(config.cut_score)])
    rows = read_hardness(hardness, list(names))
    labels = rows["label"].to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < dataset.num_classes:
        raise EasyCoreError(
            f"labels must be 0 .. {dataset.num_classes - 1}, the dataset's classes; {hardness.path} has "
            f"{labels.min()} .. {labels.max()}; it is damaged"
        )
    scores, cut = (hardness_column(rows, score).to_numpy() for score in (config.score, config.cut_score))
    return AuditedSamples(
        rows["sample_id"].to_numpy(),
        labels,
        scores,
        scores if is_higher_harder(config.score) else -scores,
        cut if is_higher_harder(config.cut_score) else -cut,
    )


def _find(config: AuditConfig, samples: AuditedSamples, dataset: Dataset) -> AuditFindings:
    count = int(np.floor(config.label_errors * len(samples.ids) + 0.5))
    groups = _equal_images(dataset, samples.ids)
    several = np.flatnonzero(groups >= 0)
    first = groups[several]
    # Groups one after the other, each in the order of ids.
    several = several[np.argsort(first, kind="stable")]
    first = groups[several]
    mixed = np.isin(first, first[samples.labels[several] != samples.labels[first]])
    return AuditFindings(
        places_of_hardest(samples.hardness, samples.ids, count),
        several[mixed],
        several[~mixed & (several != first)],
        groups,
        class_shares(samples.cut_hardness, samples.ids, samples.labels, dataset.num_classes, config.fraction),
    )


def _equal_images(dataset: Dataset, ids: Ids) -> Ids:
    """For every sample the place of the first one whose stored image is equal, −1 where there is no other: (N,)."""
    prefixes = np.empty(len(ids), np.uint64)
    done = 0
    for span in index_spans(dataset.path, "train", _SPAN_ROWS):
        rows = read_index_range(dataset.path, "train", span.first_id, span.last_id, ["sample_id", "sha256"])
        low, high = np.searchsorted(ids, [span.first_id, span.last_id + 1])
        there = np.isin(rows["sample_id"].to_numpy(), ids[low:high], assume_unique=True)
        digits = pc.utf8_slice_codeunits(rows["sha256"].filter(pa.array(there)), 0, 16)
        found = np.frombuffer(bytes.fromhex("".join(digits.to_pylist())), ">u8")
        prefixes[done : done + len(found)] = found[: len(ids) - done]
        done += len(found)
    if done != len(ids):
        raise EasyCoreError(f"{dataset.path} has {done:,} of {len(ids):,} scored samples; do they belong together?")
    # Whole hashes of the few that may be equal: 8 bytes of each are held, not 64.
    groups = first_equals(prefixes)
    at = np.flatnonzero(groups >= 0)
    whole = read_index_rows(dataset.path, "train", ids[at], ["sample_id", "sha256"])["sha256"].to_numpy()
    equal = first_equals(whole.astype(str))
    groups[at] = np.where(equal >= 0, at[np.maximum(equal, 0)] if len(at) else at, -1)
    return groups


# --- what is written ----------------------------------------------------------------------------


def _table(samples: AuditedSamples, found: AuditFindings, dataset: Dataset) -> pa.Table:
    """The findings, kind by kind, by rank."""
    kinds = {
        "label_error": found.label_errors,
        "label_conflict": found.label_conflicts,
        "duplicate": found.duplicates,
    }
    at = np.concatenate(list(kinds.values()))
    ids = samples.ids[at]
    known = read_index_rows(dataset.path, "train", ids, ["sample_id", "key"])
    keys = known["key"].take(pa.array(np.searchsorted(known["sample_id"].to_numpy(), ids)))
    # A suspect label is a finding about one image, whatever others are equal to it.
    of_copies = np.arange(len(at)) >= len(found.label_errors)
    return pa.table(
        {
            "sample_id": ids,
            "label": samples.labels[at].astype(np.int32),
            "key": keys,
            "kind": np.repeat(list(kinds), [len(places) for places in kinds.values()]),
            "score": samples.scores[at],
            "rank": np.concatenate([np.arange(1, len(places) + 1, dtype=np.int32) for places in kinds.values()]),
            "group": pa.array(samples.ids[found.groups[at]], mask=~of_copies),
        },
        schema=FINDINGS_SCHEMA,
    )


def _summarise(config: AuditConfig, samples: AuditedSamples, found: AuditFindings, dataset: Dataset) -> dict[str, Any]:
    """``summary.json``."""
    shares = found.shares
    ratios = [None if np.isnan(ratio) else float(ratio) for ratio in shares.ratios]
    rows = [
        {"label": label, "name": name, "samples": int(shares.sizes[label]), "quota": int(shares.quotas[label]),
         "kept": int(shares.kept[label]), "ratio": ratios[label]}
        for label, name in enumerate(dataset.classes)
    ]  # fmt: skip
    # Those that keep least first; at the end those that no cut of this size has room for.
    rows.sort(key=lambda row: (row["ratio"] is None, row["ratio"] or 0.0, row["label"]))
    suspects = np.bincount(samples.labels[found.label_errors], minlength=dataset.num_classes)
    summary: dict[str, Any] = {
        "samples": len(samples.ids),
        "score": config.score,
        "label_errors": {
            "share": config.label_errors,
            "samples": len(found.label_errors),
            "class_histogram": suspects.tolist(),
        },
        "label_conflicts": _count(found, found.label_conflicts),
        "duplicates": _count(found, found.duplicates),
        "classes": {
            "score": config.cut_score,
            "fraction": config.fraction,
            "threshold": config.starved,
            "separability": separability(samples.cut_hardness, samples.labels),
            "starved": shares.starved(config.starved).tolist(),
            "rows": rows,
        },
    }
    return summary | {"sentences": _sentences(summary, dataset.classes)}


def _count(found: AuditFindings, places: Ids) -> dict[str, int]:
    return {"groups": len(np.unique(found.groups[places])), "samples": len(places)}


def _sentences(summary: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """What was found, in words."""
    errors, conflicts, copies = (summary[name] for name in ("label_errors", "label_conflicts", "duplicates"))
    most = int(np.argmax(errors["class_histogram"]))
    listed = f"{count_text(errors['samples'], 'sample')} of {summary['samples']:,} listed as likely label errors, "
    listed += f"hardest by {summary['score']}"
    if errors["samples"]:
        listed += f"; most of them, {errors['class_histogram'][most]:,}, in class {classes[most]}"
    mixed = "no image is there with different labels"
    if conflicts["groups"]:
        mixed = f"{count_text(conflicts['groups'], 'image')} there with different labels, in "
        mixed += f"{count_text(conflicts['samples'], 'sample')}: at least one label of each is wrong"
    equal = "no image is there more than once with one label"
    if copies["groups"]:
        equal = f"{count_text(copies['groups'], 'image')} there more than once with one label: "
        equal += f"{copies['samples']:,} {'copy' if copies['samples'] == 1 else 'copies'} beside the first"
    return [listed, mixed, equal, _class_sentence(summary["classes"], classes)]


def _class_sentence(found: Mapping[str, Any], classes: Sequence[str]) -> str:
    cut = f"the easiest {percent(found['fraction'])} by {found['score']}"
    ratios = {row["label"]: row["ratio"] for row in found["rows"]}
    starved = [f"{classes[label]} ({100 * ratios[label]:.0f} % of its quota)" for label in found["starved"]]
    apart = f"η² between classes {found['separability']:.2f}"
    if not starved:
        least = found["rows"][0]
        kept = f"{100 * least['ratio']:.0f} % of its quota"
        return f"{cut} starves no class: {least['name']} keeps least, {kept}; {apart}"
    named = ", ".join(starved[:5]) + (", …" if len(starved) > 5 else "")
    return f"{cut} starves {len(starved):,} of {len(classes):,} classes: {named}; {apart}"


def _pictures(samples: AuditedSamples, found: AuditFindings, dataset: Dataset) -> AuditPictures:
    """The images of the page, read once each."""
    errors = found.label_errors[:_SHOWN_ERRORS]
    mixed, equal = (_first_groups(found, places) for places in (found.label_conflicts, found.duplicates))
    at = np.unique(np.concatenate([errors, *mixed, *equal]))
    rows = read_split(dataset, "train", samples.ids[at])

    def show(places: Ids) -> Images:
        pixels = rows.images.numpy()[np.searchsorted(at, places)]
        return Images(samples.ids[places], samples.labels[places].astype(np.int64), samples.scores[places], pixels)

    return AuditPictures(show(errors) if len(errors) else None, [*map(show, mixed)], [*map(show, equal)])


def _first_groups(found: AuditFindings, places: Ids) -> list[Ids]:
    """Places of the images of the first groups that some findings are of, a few of each; the first one included."""
    groups = np.unique(found.groups[places])[:_SHOWN_GROUPS]
    return [np.flatnonzero(found.groups == group)[:_SHOWN_COPIES] for group in groups]
