"""inspect(): what any artifact is, how it came to be, and whether it is still whole.

Takes the folder of an artifact, finished or not, and gives plain data (``reporting.inspect_text`` turns it into text).
Nothing is changed and no Ray is started. Without ``verify`` the manifest is believed; with it everything is reread.
"""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from easycore_ray.config import evaluation, experiments, inspection, stages
from easycore_ray.config.base import verb
from easycore_ray.config.inspection import InspectConfig
from easycore_ray.data.index import read_index_rows
from easycore_ray.engine.run_history import STOPPED
from easycore_ray.inspection.artifact_files import Folder, current, read_commits, survey
from easycore_ray.inspection.score_summary import (
    QUANTILES,
    Extremes,
    NotRecordedError,
    ScoreSummary,
    summarise_scores,
    usual_score,
)
from easycore_ray.scoring.score_reader import input_space_of, training_of
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import DIVERGED, MANIFEST, RUN, Artifact, open_artifact, work_folder
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

_CONFIGS: dict[str, type[Any]] = {
    "dataset": stages.PrepareConfig,
    "scoring_run": stages.ScoreConfig,
    "score_table": stages.ScoreConfig,
    "feature_table": stages.ScoreConfig,
    "hardness_table": stages.ReduceConfig,
    "coreset": stages.CoresetConfig,
    "checkpoint": stages.TrainConfig,
    "evaluation": evaluation.EvaluateConfig,
    "sweep": experiments.SweepConfig,
    "study": experiments.StudyConfig,
    "report": inspection.ReportConfig,
    "analysis": experiments.AnalyzeConfig,
    "audit": inspection.AuditConfig,
    "pipeline": experiments.PipelineConfig,
}
# Of the configuration: where the artifact is, which it says itself.
_NOT_SHOWN = {"out", "overwrite", "take_over"}
_FILE_LISTS = {"parts", "files", "shards"}


@verb(InspectConfig, gives=dict[str, Any])
def inspect(config: InspectConfig) -> dict[str, Any]:
    """Gather what is known of an artifact.

    Returns:
        JSON content. Always: ``path, kind, state`` (``finished`` or ``unfinished``)``, bytes, num_files, files``.
        For a finished one also ``created, fingerprint, counts, coverage, parents, config, versions, cost, schema,
        details``; ``scores`` where there are any
        (``scores_problem`` if they cannot be read); for an unfinished one ``progress``. ``inside``: the artifacts in
        its folder. With ``verify``, ``verified``: what is wrong with each, by path.

    Raises:
        EasyCoreError: if the path is no artifact (names those below it), of a newer format, or has no scores to
            draw images by.
    """
    folders = current(survey(work_folder(paths.absolute(config.path))))
    folder = folders[0]
    facts = _finished(folder) if folder.finished else _unfinished(folder)
    facts |= {"num_files": sum(len(each.files) for each in folders), **_sizes(folders)}
    if folder.finished:
        inner = folders[1:] if folder.kind == "scoring_run" else []
        facts["schema"] = {
            name: columns for each in (folder, *inner) for name, columns in _schema(each, folder).items()
        }
    facts["inside"] = [_summarize_inner(inner, folder) for inner in folders[1:]]
    hardness = _hardness(folder)
    if hardness is not None:
        try:
            facts["scores"] = _scores(hardness, config)
        except NotRecordedError:
            raise
        except EasyCoreError as error:
            # The rest can still be reported, and a verification is to name all that is wrong.
            if config.images is not None:
                raise
            facts["scores_problem"] = str(error)
    elif config.images is not None:
        raise EasyCoreError(f"{folder.path} holds no finished hardness table to draw images by; leave --images out")
    if config.verify:
        facts["verified"] = _verified(folders)
    return facts


# --- the artifact -------------------------------------------------------------------------------


def _finished(folder: Folder) -> dict[str, Any]:
    manifest = folder.manifest
    assert manifest is not None
    return {
        "path": folder.path,
        "kind": folder.kind,
        "state": "finished",
        "created": manifest.get("created"),
        "fingerprint": manifest["fingerprint"],
        "identity": manifest.get("identity"),
        "format_version": manifest.get("format_version"),
        "counts": manifest.get("counts", {}),
        "coverage": _coverage(folder),
        "cost": {key: manifest[key] for key in ("wall_seconds", "device_seconds", "num_workers") if key in manifest},
        "details": _details(folder.kind, manifest),
        "parents": _lineage(manifest),
        "config": changed_config(folder.kind, manifest.get("config", {})),
        "versions": manifest.get("versions", {}),
        "git_commit": manifest.get("git_commit"),
    }


def _unfinished(folder: Folder) -> dict[str, Any]:
    claim = folder.claim
    assert claim is not None
    last = max((entry.modified for entry in folder.files), default=0.0)
    progress: dict[str, Any] = {"seconds_since_last_write": round(max(0.0, time.time() - last))}
    if (commits := read_commits(folder)) is not None:
        progress["committed_epochs"] = max(commits.epoch, 0)
        progress["committed_segments"] = commits.segments
        progress["epochs"] = list(commits.history)
        if folder.kind == "scoring_run":
            progress["committed_rows"] = commits.rows
            progress["committed_parts"] = len(commits.parts)
    if (end := _early_end(folder)) is not None:
        progress[end] = paths.read_json(paths.join(folder.path, f"{end}.json"))["problem"]
    return {
        "path": folder.path,
        "kind": folder.kind,
        "state": "unfinished",
        "claimed": claim.get("created"),
        "identity": claim["identity"],
        "nonce": claim["nonce"],
        "progress": progress,
    }


def _early_end(folder: Folder) -> str | None:
    """Why an unfinished training run, it and no other that was here before, ends there: ``diverged`` or ``stopped``."""
    names = {DIVERGED: "diverged", STOPPED: "stopped"}
    for name in names.keys() & set(map(folder.relative, folder.files)):
        note = paths.read_json(paths.join(folder.path, name))
        if folder.claim is not None and note["identity"] == folder.claim["identity"]:
            return names[name]
    return None


def _details(kind: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What only this kind has: the rest of its manifest, without lists of files."""
    common = {"kind", "format_version", "fingerprint", "identity", "created", "counts", "wall_seconds",
              "device_seconds", "num_workers", "config", "parents", "versions", "git_commit"}  # fmt: skip
    found = {key: value for key, value in manifest.items() if key not in common | _FILE_LISTS}
    if kind == "dataset" and "shards" in manifest:
        found["class_histogram"] = {
            split: np.sum([entry["class_histogram"] for entry in entries], axis=0).astype(int).tolist()
            for split, entries in manifest["shards"].items() if entries
        }  # fmt: skip
        found["num_shards"] = {split: len(entries) for split, entries in manifest["shards"].items()}
    return found


def _coverage(folder: Folder) -> dict[str, Any] | None:
    """Scored epochs and rows of a score table, as its manifest lists them."""
    manifest = folder.manifest
    if folder.kind == "scoring_run":
        inner = paths.join(folder.path, "table", MANIFEST)
        manifest = paths.read_json(inner) if paths.exists(inner) else None
    if manifest is None or manifest.get("kind") != "score_table":
        return None
    rows: dict[int, int] = {}
    for part in manifest["parts"]:
        rows[part["epoch"]] = rows.get(part["epoch"], 0) + part["rows"]
    samples = manifest["counts"]["samples"]
    return {
        "samples": samples,
        "epochs": sorted(rows),
        "parts": len(manifest["parts"]),
        "rows": sum(rows.values()),
        # Every id exactly once was proved when each epoch was committed; --verify proves it again.
        "every_sample_once": all(count == samples for count in rows.values()),
        "score_pass": manifest["config"].get("score_pass"),
        "input_space": manifest["config"].get("input_space", "pixel"),
        "training": manifest["config"].get("training", "standard"),
    }


def changed_config(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a saved configuration that differ from the defaults, and those that have none."""
    if kind not in _CONFIGS:
        return dict(config)
    specs = {name: spec.default for name, spec in _CONFIGS[kind].__dataclass_fields__.items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in specs.items()}
    return {name: value for name, value in config.items()
            if name not in _NOT_SHOWN and not (name in plain and plain[name] == value)}  # fmt: skip


def _lineage(manifest: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Parents, their parents and so on, each with what has become of it."""
    found = []
    for role, entry in manifest.get("parents", {}).items():
        state, now = _state_of(entry)
        line = {"role": role, **entry, "state": state}
        if now is not None and entry["path"] not in above:
            line["parents"] = _lineage(now, (*above, entry["path"]))
        found.append(line)
    return found


def _state_of(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """``unchanged``, ``changed``, ``unfinished``, ``gone`` or ``unreadable``; and the manifest that is there now."""
    try:
        if not paths.exists(entry["path"]):
            return "gone", None
        if entry["kind"] == "weights_file":
            same = content_hash(paths.read_bytes(entry["path"])) == entry["fingerprint"]
            return ("unchanged" if same else "changed"), None
        now = open_artifact(entry["path"], any_version=True).manifest
    except EasyCoreError:
        claimed, finished = (paths.exists(paths.join(entry["path"], name)) for name in (RUN, MANIFEST))
        return ("unfinished" if claimed and not finished else "unreadable"), None
    return ("unchanged" if now["fingerprint"] == entry["fingerprint"] else "changed"), now


def _schema(folder: Folder, root: Folder) -> dict[str, dict[str, str]]:
    """Columns of an artifact's own Parquet files, one file of each sort; numbers and attempts are stars."""
    found = {}
    for entry in folder.files:
        sort = re.sub(r"(?<=[-=])\d{5}(?=[-./])|(?<=part-).*(?=\.parquet)", "*", root.relative(entry))
        if sort.endswith(".parquet") and sort not in found:
            found[sort] = _columns(entry.path)
    return found


def _columns(path: str) -> dict[str, str]:
    filesystem, inner = paths.locate(path)
    try:
        schema = pq.read_schema(inner, filesystem=filesystem)
    except (OSError, ValueError) as error:
        return {"": f"cannot be read: {error}"}
    return {field.name: str(field.type) for field in schema}


# --- its folder ---------------------------------------------------------------------------------


def _sizes(folders: list[Folder]) -> dict[str, Any]:
    """Bytes of the whole, and of each file or folder at its top."""
    root = folders[0]
    tops: dict[str, dict[str, int]] = {}
    for entry in sorted(entry for folder in folders for entry in folder.files):
        name, slash, _ = root.relative(entry).partition("/")
        top = tops.setdefault(name + slash, {"files": 0, "bytes": 0})
        top["files"] += 1
        top["bytes"] += entry.size
    return {"bytes": sum(top["bytes"] for top in tops.values()), "files": tops}


def _summarize_inner(inner: Folder, folder: Folder) -> dict[str, Any]:
    """An artifact inside another: enough to choose the next one to inspect."""
    found: dict[str, Any] = {
        "path": inner.path[len(folder.path) + 1 :],
        "kind": inner.kind,
        "state": "finished" if inner.finished else "unfinished",
        "bytes": sum(entry.size for entry in inner.files),
    }
    if not inner.finished and (end := _early_end(inner)) is not None:
        found[end] = True
    if inner.manifest is not None:
        found["counts"] = inner.manifest.get("counts", {})
        if "summary" in inner.manifest:
            found["summary"] = inner.manifest["summary"]
    return found


def _verified(folders: list[Folder]) -> list[dict[str, Any]]:
    """What is wrong with the artifact and each one inside it."""
    from easycore_ray.inspection.verify import verify

    found = []
    for folder in folders:
        if folder.manifest is None:
            # A run that diverged or was stopped is what the sweep around it says it is.
            expected = _early_end(folder) is not None and folder is not folders[0]
            problems = [] if expected else ["is unfinished; nothing to verify yet"]
            found.append({"path": folder.path, "kind": folder.kind, "problems": problems})
            continue
        problems = verify(Artifact(folder.path, folder.manifest))
        wrong = [
            f"was made from the {line['role'].replace('_', ' ')} {line['path']}, which is {line['state']} "
            "since: it has another fingerprint"
            for line in _lineage(folder.manifest) if line["state"] == "changed"
        ]  # fmt: skip
        found.append({"path": folder.path, "kind": folder.kind, "problems": problems + wrong})
    return found


# --- scores -------------------------------------------------------------------------------------


def _hardness(folder: Folder) -> Artifact | None:
    """The finished hardness table an artifact is or holds."""
    if folder.kind == "hardness_table" and folder.manifest is not None:
        return Artifact(folder.path, folder.manifest)
    inner = paths.join(folder.path, "hardness")
    if folder.kind == "scoring_run" and paths.exists(paths.join(inner, MANIFEST)):
        return open_artifact(inner, "hardness_table", any_version=True)
    return None


def _scores(hardness: Artifact, config: InspectConfig) -> dict[str, Any]:
    """Quantiles, the easiest and the hardest samples; draws them if a file is named for it."""
    score = config.score or usual_score(hardness)
    summary = summarise_scores(hardness, score=score, count=config.count)
    dataset = _dataset_of(hardness)
    found: dict[str, Any] = {
        "rows": summary.rows,
        "sampled_rows": summary.sampled_rows,
        "quantile_names": ["min", *(f"{100 * share:g} %" for share in QUANTILES), "max"],
        "quantiles": summary.quantiles,
        "score": score,
        "score_pass": hardness.manifest.get("score_pass"),
        "input_space": input_space_of(hardness),
        "training": training_of(hardness),
        "dataset": None if dataset is None else dataset.path,
    }
    for name, rows in (("easiest", summary.easiest), ("hardest", summary.hardest)):
        found[name] = list(_described(rows, dataset))
    if config.images is not None:
        if dataset is None:
            raise EasyCoreError(
                f"images cannot be drawn: the dataset {hardness.manifest['dataset']['path']} is gone or another one"
            )
        found["images"] = _draw(summary, dataset, config, score)
    return found


def _dataset_of(hardness: Artifact) -> Artifact | None:
    """The dataset that was scored, if it is still there and the same."""
    entry = hardness.manifest.get("dataset", {})
    if not entry or _state_of(entry)[0] != "unchanged":
        return None
    return open_artifact(entry["path"], "dataset", any_version=True)


def _described(rows: Extremes, dataset: Artifact | None) -> Iterator[dict[str, Any]]:
    """Samples with score, label, and, from the dataset, class name and source key."""
    keys: dict[int, str] = {}
    if dataset is not None and len(rows.sample_ids):
        index = read_index_rows(dataset.path, "train", rows.sample_ids, ["sample_id", "key"])
        keys = dict(zip(index["sample_id"].to_pylist(), index["key"].to_pylist(), strict=True))
    classes = [] if dataset is None else dataset.manifest["classes"]
    for number, label, value in zip(*(column.tolist() for column in vars(rows).values()), strict=True):
        name = classes[label] if label < len(classes) else None
        yield {"sample_id": number, "label": label, "class": name, "score": value, "key": keys.get(number)}


def _draw(summary: ScoreSummary, dataset: Artifact, config: InspectConfig, score: str) -> str:
    """Write the picture; its path."""
    # Matplotlib and Ray are slow to load, and only needed here.
    from easycore_ray.data.dataset import Dataset
    from easycore_ray.data.samples import read_split
    from easycore_ray.reporting.figures import to_png
    from easycore_ray.reporting.image_grid import Images, extremes_grid

    assert config.images is not None
    shown: list[Images] = []
    for rows in (summary.easiest, summary.hardest):
        read = read_split(Dataset(dataset.path, dataset.manifest), "train", rows.sample_ids)
        order = np.searchsorted(read.sample_ids.numpy(), rows.sample_ids)
        shown.append(Images(rows.sample_ids, rows.labels, rows.values, read.images.numpy()[order]))
    easiest, hardest = shown
    plot = extremes_grid(easiest, hardest, dataset.manifest["classes"], score=score)
    out = paths.absolute(config.images)
    paths.write_bytes(out, to_png(plot, {}))
    return out
