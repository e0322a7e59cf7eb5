"""Is an artifact still what its manifest says? Rereads every file of every kind of artifact.

Takes a finished artifact, gives the list of what is wrong with it, in sentences; empty if all is well. Checksums,
row counts, schemas and coverage are read from the files themselves, a file at a time; nothing is changed.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.data import shards
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.index import dataset_fingerprint
from easycore_ray.data.ingest.splits import SPLITS
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.engine.checkpoint_files import weights_files
from easycore_ray.evaluation.evaluate import summarise_outcomes
from easycore_ray.evaluation.threats import Threats
from easycore_ray.scoring import feature_table, hardness_table, score_reader, score_table
from easycore_ray.scoring.score_reader import ScoreTable
from easycore_ray.scoring.score_table import ScorePart
from easycore_ray.selection.exclusion import FINDINGS
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash, study_fingerprint


def verify(artifact: Artifact) -> list[str]:
    """Reread an artifact's own files; what is wrong, one sentence each.

    Artifacts inside its folder, and its parents, are verified on their own.
    """
    if artifact.kind not in _CHECKS:
        return [f"{artifact.path} is of kind {artifact.kind!r}, which this release cannot verify"]
    try:
        return list(_CHECKS[artifact.kind](artifact))
    except EasyCoreError as error:
        return [str(error)]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        return [f"{artifact.path} cannot be read as its manifest says: {type(error).__name__}: {error}"]


def _dataset(artifact: Artifact) -> Iterator[str]:
    dataset = Dataset(artifact.path, artifact.manifest)
    parts = [dataset.index(split) for split in SPLITS]
    for split, index in zip(SPLITS, parts, strict=True):
        if index.num_rows != artifact.manifest["counts"][split]:
            yield _differs(f"{split} rows in index.parquet", index.num_rows, artifact.manifest["counts"][split])
        yield from _shards(dataset, split, index)
    if dataset_fingerprint(pa.concat_tables(parts)) != artifact.fingerprint:
        yield "index.parquet does not have the fingerprint in the manifest; labels or images are others"


def _shards(dataset: Dataset, split: str, index: pa.Table) -> Iterator[str]:
    entries = dataset.manifest["shards"][split]
    shard = index["shard"].to_numpy()
    for number, entry in enumerate(entries):
        where = paths.join(dataset.path, entry["path"])
        if not paths.exists(where):
            yield f"{entry['path']} is listed in the manifest but not there"
            continue
        if paths.size(where) != entry["bytes"]:
            yield _differs(f"bytes of {entry['path']}", paths.size(where), entry["bytes"])
        try:
            rows = shards.read_rows(where)
        except (OSError, pa.ArrowException, ValueError) as error:
            yield f"{entry['path']} cannot be read: {error}"
            continue
        if rows.schema != dataset.shard_schema:
            yield f"{entry['path']} has another schema than the manifest says: {rows.schema.names}"
            continue
        expected = index.filter(pa.array(shard == number)).sort_by("row")
        yield from _shard_rows(entry, rows, expected)
    listed = sum(entry["rows"] for entry in entries)
    if listed != index.num_rows:
        yield _differs(f"{split} rows in the listed shards", listed, index.num_rows)


def _shard_rows(entry: dict[str, Any], rows: pa.Table, expected: pa.Table) -> Iterator[str]:
    if not rows.num_rows == expected.num_rows == entry["rows"]:
        yield _differs(f"rows of {entry['path']}", rows.num_rows, entry["rows"])
        return
    for name in ("sample_id", "label"):
        if not np.array_equal(rows[name].to_numpy(), expected[name].to_numpy()):
            yield f"{entry['path']} holds another {name} than index.parquet says"
            return
    hashes = [hashlib.sha256(image.as_buffer()).hexdigest() for image in rows["image"]]
    wrong = [at for at, (found, known) in enumerate(zip(hashes, expected["sha256"].to_pylist(), strict=True))
             if found != known]  # fmt: skip
    if wrong:
        first = expected["sample_id"][wrong[0]].as_py()
        yield f"{entry['path']} holds {len(wrong):,} images that are not those imported (first sample_id: {first})"


def _score_table(artifact: Artifact) -> Iterator[str]:
    table = ScoreTable(artifact, tuple(ScorePart.from_dict(entry) for entry in artifact.manifest["parts"]))
    samples = score_reader.read_samples(table.path)
    counts = artifact.manifest["counts"]
    if samples.num_rows != counts["samples"]:
        yield _differs("rows of samples.parquet", samples.num_rows, counts["samples"])
    checksum = score_table.id_checksum(samples["sample_id"].to_numpy())
    for part in table.parts:
        yield from _score_part(table, part, samples)
    for epoch in table.epochs():
        try:
            score_table.check_coverage(table.parts, epoch=epoch, num_samples=samples.num_rows, checksum=checksum)
        except EasyCoreError as error:
            yield str(error).removesuffix("; the epoch is not committed")
    yield from _scored_epochs(table, artifact.manifest)
    if score_table.fingerprint(table.parts) != artifact.fingerprint:
        yield "the listed parts do not have the fingerprint in the manifest"


def _scored_epochs(table: ScoreTable, manifest: dict[str, Any]) -> Iterator[str]:
    """Whether the epochs are there that the configuration asks for."""
    config = manifest["config"]
    if not {"epochs", "score_every"} <= set(config):
        return
    trained = config["epochs"]
    if config.get("stop_when_stable") is not None:
        trained = int(max(entry["epoch"] for entry in manifest["epochs"]))
    # Runs of format version 1 always made the initial pass.
    expected = score_table.scored_epochs({"score_pass": "eval", "initial_pass": True, **config}, trained)
    if table.epochs() != expected:
        yield _differs("scored epochs", table.epochs(), expected)


def _score_part(table: ScoreTable, part: ScorePart, samples: pa.Table) -> Iterator[str]:
    """One part: its checksum, and that its rows are what its descriptor says of them."""
    schema = table.schema
    try:
        whole = (-(2**63), 2**63 - 1)
        found = score_reader.read_range(table.path, part, *whole, schema.names, schema=schema, verify=True)
        rows = pa.Table.from_batches((some.to_batch() for some in found), schema=schema)
    except EasyCoreError as error:
        yield str(error)
        return
    ids = rows["sample_id"].to_numpy()
    if rows.num_rows != part.rows or np.any(np.diff(ids) <= 0):
        yield f"{part.path} has rows that are missing, not in id order, or doubled"
        return
    if score_table.id_checksum(ids) != part.id_checksum:
        yield f"{part.path} holds other samples than the manifest says"
        return
    if len(ids) and (rows["epoch"].to_numpy() != part.epoch).any():
        yield f"{part.path} holds rows of another epoch than {part.epoch}"
    for name in (name for name in score_table.FLOAT_SCORES if name in schema.names):
        if not np.isfinite(rows[name].to_numpy()).all():
            yield f"{part.path} holds {name} that is not finite"
    known = samples["sample_id"].to_numpy()
    at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
    if len(ids) and not np.array_equal(known[at], ids):
        yield f"{part.path} holds samples that samples.parquet does not know"
    elif len(ids) and not np.array_equal(samples["label"].to_numpy()[at], rows["label"].to_numpy()):
        yield f"{part.path} holds other labels than samples.parquet"


def _hardness_table(artifact: Artifact) -> Iterator[str]:
    rows, last = 0, None
    for entry in artifact.manifest["files"]:
        yield from _listed_file(artifact.path, entry)
        try:
            table = hardness_table.read_hardness_file(artifact.path, entry)
        except EasyCoreError as error:
            yield str(error)
            continue
        schema = _schema(paths.join(artifact.path, entry["path"]))
        attacked = score_reader.training_of(artifact) != "standard"
        if schema != hardness_table.schema_of(artifact.manifest.get("only"), attacked=attacked):
            yield f"{entry['path']} has another schema than a hardness table: {schema.names}"
            continue
        ids = table["sample_id"].to_numpy()
        if np.any(np.diff(ids) <= 0) or (len(ids) and last is not None and ids[0] <= last):
            yield f"{entry['path']} is not in id order, or holds a sample that another file holds"
        rows, last = rows + len(ids), int(ids[-1]) if len(ids) else last
    if rows != artifact.manifest["counts"]["samples"]:
        yield _differs("rows of the table", rows, artifact.manifest["counts"]["samples"])


def _coreset(artifact: Artifact) -> Iterator[str]:
    manifest = artifact.manifest
    ids = np.load(io.BytesIO(paths.read_bytes(paths.join(artifact.path, "sample_ids.npy"))), allow_pickle=False)
    if len(ids) != manifest["counts"]["samples"]:
        yield _differs("ids in sample_ids.npy", len(ids), manifest["counts"]["samples"])
    if np.any(np.diff(ids) <= 0):
        yield "sample_ids.npy is not ascending, or names a sample twice"
    if content_hash(ids.astype("<i8").tobytes()) != artifact.fingerprint:
        yield "sample_ids.npy does not have the fingerprint in the manifest"
    entries = [entry for entry in manifest.get("files", []) if isinstance(entry, dict)]
    names = [entry["path"] for entry in entries if entry["path"].endswith(".parquet")] or ["coreset.parquet"]
    for entry in entries:
        yield from _listed_file(artifact.path, entry)
    parts = [pq.read_table(pa.BufferReader(paths.read_bytes(paths.join(artifact.path, name)))) for name in names]
    rows = pa.concat_tables(parts)
    if not np.array_equal(rows["sample_id"].to_numpy(), ids):
        yield f"{names[0]} and sample_ids.npy name different samples"
    histogram = np.bincount(rows["label"].to_numpy(), minlength=len(manifest["classes"])).tolist()
    if histogram != manifest["class_histogram"]:
        yield _differs("samples by class", histogram, manifest["class_histogram"])
    keys = paths.read_bytes(paths.join(artifact.path, "keys.txt")).decode()
    if keys != "".join(f"{key}\n" for key in rows["key"].to_pylist()):
        yield f"keys.txt does not name the samples of {names[0]}"


def _checkpoint(artifact: Artifact) -> Iterator[str]:
    weights = weights_files(artifact.manifest)
    names = list(dict.fromkeys(weights.values()))
    if content_hash(*(paths.read_bytes(paths.join(artifact.path, name)) for name in names)) != artifact.fingerprint:
        verb = "does" if len(names) == 1 else "do"
        yield f"{' and '.join(names)} {verb} not have the fingerprint in the manifest; these are other weights"
    for which in weights:
        open_checkpoint(artifact.path, which)


def _evaluation(artifact: Artifact) -> Iterator[str]:
    manifest = artifact.manifest
    content = paths.read_bytes(paths.join(artifact.path, "outcomes.parquet"))
    if content_hash(content) != artifact.fingerprint:
        yield "outcomes.parquet does not have the fingerprint in the manifest"
    outcomes = pq.read_table(pa.BufferReader(content))
    if outcomes.num_rows != manifest["counts"]["samples"]:
        yield _differs("rows of outcomes.parquet", outcomes.num_rows, manifest["counts"]["samples"])
    config = manifest["config"]
    attacks = tuple(name for name in config["attack"] if name != "none")
    threats = Threats(
        attack=attacks,
        eps=tuple(config["eval_eps"] if "eval_eps" in config else config["eps"]),
        norm=config["norm"],
        seed=0,
    )
    # The number of classes is only needed for the worst one, and all classes were looked at then.
    classes = int(outcomes["label"].to_numpy().max(initial=0)) + 1
    accuracy = summarise_outcomes(outcomes, threats, classes)["clean_accuracy"]
    for name, found in (("manifest.json", manifest["summary"]), ("summary.json", _json(artifact, "summary.json"))):
        if found["clean_accuracy"] != accuracy:
            yield _differs(f"clean accuracy in {name}", found["clean_accuracy"], accuracy)
    if _json(artifact, "summary.json") != manifest["summary"]:
        yield "summary.json is not the one in the manifest"


def _feature_table(artifact: Artifact) -> Iterator[str]:
    rows = 0
    for part in feature_table.feature_parts(artifact):
        try:
            rows += feature_table.read_feature_part(artifact, part).num_rows
        except EasyCoreError as error:
            yield str(error)
    if rows != artifact.manifest["counts"]["samples"]:
        yield _differs("rows of the table", rows, artifact.manifest["counts"]["samples"])
    if score_table.fingerprint(feature_table.feature_parts(artifact)) != artifact.fingerprint:
        yield "the listed parts do not have the fingerprint in the manifest"


def _scoring_run(artifact: Artifact) -> Iterator[str]:
    inside_of = {"table": "score_table", "hardness": "hardness_table", "features": "feature_table"}
    for name, kind in inside_of.items():
        if kind == "feature_table" and kind not in artifact.manifest["parents"]:
            continue
        inside = _json(artifact, f"{name}/manifest.json")
        if inside["kind"] != kind:
            yield f"{name}/ holds a {inside['kind']}, not a {kind}"
        if inside["fingerprint"] != artifact.manifest["parents"][kind]["fingerprint"]:
            yield f"{name}/ is not the one this run was finished with: it has another fingerprint"


def _result_rows(artifact: Artifact) -> Iterator[str]:
    rows = len(_json(artifact, "summary.json")["rows"])
    if rows != artifact.manifest["counts"]["rows"]:
        yield _differs("rows of summary.json", rows, artifact.manifest["counts"]["rows"])


def _sweep(artifact: Artifact) -> Iterator[str]:
    yield from _result_rows(artifact)
    files = paths.list_files(paths.join(artifact.path, "trials"))
    trials = sum(name.endswith("/evaluation/manifest.json") for name in files)
    if trials != artifact.manifest["counts"]["trials"]:
        yield _differs("finished trials", trials, artifact.manifest["counts"]["trials"])


def _study(artifact: Artifact) -> Iterator[str]:
    yield from _result_rows(artifact)
    own = paths.join(artifact.path, "results.json")  # by default there, also after it was moved
    where = own if paths.exists(own) else artifact.manifest["results"]
    if not paths.exists(where):
        yield f"its results file {where} is not there"
    elif study_fingerprint(paths.read_json(where)["trials"]) != artifact.fingerprint:
        yield f"its results file {where} has not the fingerprint in the manifest; a trial was changed, or added since"


def _report(artifact: Artifact) -> Iterator[str]:
    contents = {name: paths.read_bytes(paths.join(artifact.path, name)) for name in artifact.manifest["files"]}
    if content_hash(*(content_hash(name, content) for name, content in contents.items())) != artifact.fingerprint:
        samples = "the samples, " if "samples.parquet" in contents else ""
        yield f"{samples}the page or its plots do not have the fingerprint in the manifest; they were changed"


def _analysis(artifact: Artifact) -> Iterator[str]:
    yield from _report(artifact)
    rows = pq.read_metadata(pa.BufferReader(paths.read_bytes(paths.join(artifact.path, "samples.parquet")))).num_rows
    if rows != artifact.manifest["counts"]["samples"]:
        yield _differs("rows of samples.parquet", rows, artifact.manifest["counts"]["samples"])


def _audit(artifact: Artifact) -> Iterator[str]:
    for entry in artifact.manifest["files"]:
        yield from _listed_file(artifact.path, entry)
    findings, summary = (paths.read_bytes(paths.join(artifact.path, name)) for name in (FINDINGS, "summary.json"))
    if content_hash(findings, summary) != artifact.fingerprint:
        yield f"{FINDINGS} or summary.json do not have the fingerprint in the manifest"
    rows = pq.read_metadata(pa.BufferReader(findings)).num_rows
    if rows != artifact.manifest["counts"]["findings"]:
        yield _differs(f"rows of {FINDINGS}", rows, artifact.manifest["counts"]["findings"])


def _pipeline(artifact: Artifact) -> Iterator[str]:
    parents = artifact.manifest["parents"]
    for name, role in (("summary.json", "sweep"), ("report.html", "report")):
        copy = paths.read_bytes(paths.join(artifact.path, name))
        original = paths.join(parents[role]["path"], name)
        if paths.exists(original) and paths.read_bytes(original) != copy:
            yield f"{name} is not that of {parents[role]['path']}"
    if content_hash(parents["sweep"]["fingerprint"]) != artifact.fingerprint:
        yield "the sweep it names does not have the fingerprint in the manifest"


_CHECKS: dict[str, Callable[[Artifact], Iterator[str]]] = {
    "dataset": _dataset,
    "score_table": _score_table,
    "hardness_table": _hardness_table,
    "feature_table": _feature_table,
    "coreset": _coreset,
    "checkpoint": _checkpoint,
    "evaluation": _evaluation,
    "scoring_run": _scoring_run,
    "sweep": _sweep,
    "study": _study,
    "report": _report,
    "analysis": _analysis,
    "audit": _audit,
    "pipeline": _pipeline,
}


def _listed_file(folder: str, entry: dict[str, Any]) -> Iterator[str]:
    """A file that a manifest lists with its checksum."""
    where = paths.join(folder, entry["path"])
    if not paths.exists(where):
        yield f"{entry['path']} is listed in the manifest but not there"
    elif "sha256" in entry and hashlib.sha256(paths.read_bytes(where)).hexdigest() != entry["sha256"]:
        yield f"{entry['path']} does not have the checksum in the manifest; it was damaged or replaced"


def _schema(where: str) -> pa.Schema:
    filesystem, inner = paths.locate(where)
    with filesystem.open_input_file(inner) as stream:
        return pq.read_schema(stream)


def _json(artifact: Artifact, name: str) -> Any:
    return paths.read_json(paths.join(artifact.path, name))


def _differs(what: str, found: Any, known: Any) -> str:
    return f"{what}: {found} instead of {known}"
