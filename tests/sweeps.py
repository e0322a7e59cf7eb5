"""Made-up sweeps for reports.

Accuracies come from a formula, but the images are real digits, scored by a small linear model in NumPy, so that
pictures and distributions look like those of a run.
"""

import functools
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from easycore_ray.config.arms import parse_arm
from easycore_ray.core.selection import choose
from easycore_ray.data import shards
from easycore_ray.data.index import INDEX_SCHEMA, write_index
from easycore_ray.reporting.html import ReportData
from easycore_ray.reporting.image_grid import Images
from easycore_ray.reporting.score_plots import Mix
from easycore_ray.storage import artifact, hashes, paths, provenance
from easycore_ray.storage.artifact import Claim

ARMS = ("easycore", "easycore/class", "random", "hardest")

# Points of robust accuracy an arm gains or loses against random choice, for the formula below.
GAINS = {"full": 0.0, "easycore": 0.02, "easycore/class": 0.035, "random": 0.0, "hardest": -0.09}


def row_of(arm, fraction, beta, eps, seeds=(0, 1, 2), scale=1.0):
    """A result row from a formula: more data, larger β and smaller eps are better."""
    known, gain = parse_arm(arm), GAINS.get(arm, -0.02)
    clean = 0.97 - 0.06 * (1 - fraction) - 0.012 * (beta or 0) + gain / 4
    lost = 18 * eps if beta is None else 8 * eps / (1 + beta) ** 0.3  # to the attack
    robust = max(clean * (1 - lost) + gain - 0.1 * (1 - fraction), 0.0)
    std = lambda value: value if len(seeds) > 1 else None  # noqa: E731 - reads as a rule
    return {
        "method": known.method,
        "score": known.score,
        "balance": known.balance,
        "fraction": fraction,
        "training": "standard" if beta is None else "trades",
        "beta": beta,
        "scoring_seed": 0 if known.score else None,
        "seeds": list(seeds),
        "clean_accuracy_mean": clean,
        "clean_accuracy_std": std(0.004 + 0.002 * (1 - fraction)),
        "robust_accuracy_by_seed": [robust + 0.008 * ((seed + len(arm)) % 3 - 1) for seed in seeds],
        "robust_accuracy_pgd20_mean": robust,
        "robust_accuracy_pgd20_std": std(0.008 + 0.006 * (1 - fraction)),
        # Adversarial training on small coresets overfits: an earlier epoch was the best.
        "best_epoch_mean": 20.0 if beta is None else 20.0 * fraction,
        "clean_accuracy_best_mean": clean if beta is None else clean - 0.02 * (1 - fraction),
        "clean_accuracy_best_std": std(0.005),
        "robust_accuracy_pgd20_best_mean": robust if beta is None else robust + 0.08 * (1 - fraction),
        "robust_accuracy_pgd20_best_std": std(0.006),
        "worst_class_clean_accuracy_mean": clean - 0.07,
        "worst_class_robust_accuracy_pgd20_mean": max(robust - 0.14, 0.0),
        "eps": eps,
        "epochs": 20,
        "steps": round(1760 * fraction * scale),
        "num_samples": round(1409 * fraction),
        "scoring_seconds": 41.0 * scale if known.score else 0.0,
        "training_seconds": scale * fraction * (38.0 if beta is None else 290.0),
        "device": "cpu",
    }


def make_rows(arms=ARMS, fractions=(0.3, 0.5), betas=(None, 1.0, 6.0), all_eps=(4 / 255, 8 / 255), **options):
    """Rows as a sweep writes them: full data first, then every arm and fraction; a row per eps."""
    pairs = [("full", 1.0), *((arm, fraction) for arm in arms for fraction in fractions)]
    return [row_of(*pair, beta, eps, **options) for pair in pairs for beta in betas for eps in all_eps]


def make_curves(rows, epochs=20):
    """Curves that go with rows: training improves throughout, validation under attack until the best epoch."""
    found = []
    for row in {(row["method"], row["balance"], row["fraction"], row["beta"]): row for row in rows}.values():
        keys = ("method", "score", "balance", "fraction", "training", "beta", "seeds")
        entries = []
        for epoch in range(1, epochs + 1):
            done = 1 - math.exp(-epoch / (4 * row["fraction"]))
            clean = row["clean_accuracy_mean"] * done
            entry = {"epoch": epoch, "train_loss": 2.4 - 1.9 * done, "train_accuracy": min(1.0, clean + 0.02),
                     "val_accuracy": clean}  # fmt: skip
            if row["beta"] is not None:
                lost = 0.004 * (1 - row["fraction"]) * max(0.0, epoch - row["best_epoch_mean"])
                entry["val_robust_accuracy"] = row["robust_accuracy_pgd20_best_mean"] * done - lost
            entries.append(entry)
        found.append({key: row[key] for key in keys} | {"epochs": entries})
    return found


ROWS = make_rows(all_eps=(8 / 255,))


@functools.cache
def scored_digits(epochs=8):
    """Digits and their hardness under softmax regression trained by gradient descent."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)[:, None]
    inputs, labels = pixels.reshape(len(pixels), -1) / 255, digits.target
    weights, history, norms, right = np.zeros((64, 10)), [], [], []
    for epoch in range(1, epochs + 1):
        for _ in range(25):
            weights -= 0.5 * inputs.T @ (softmax(inputs @ weights) - np.eye(10)[labels]) / len(inputs)
        error = softmax(inputs @ weights) - np.eye(10)[labels]
        norms.append(np.linalg.norm(error @ weights.T, axis=1))
        right.append((inputs @ weights).argmax(1) == labels)
        loss = -np.log(softmax(inputs @ weights)[np.arange(len(labels)), labels])
        history.append({"epoch": epoch, "train_loss": loss.mean(), "train_accuracy": right[-1].mean(),
                        "val_accuracy": right[-1][::7].mean(), "train_seconds": 1.0, "score_seconds": 0.5,
                        "mean_grad_norm": norms[-1].mean()})  # fmt: skip
    right = np.array(right)
    hardness = {
        "sample_id": np.arange(len(labels)),
        "label": labels.astype(np.int32),
        "aign": np.mean(norms, axis=0),
        "forgetting_events": (right[:-1] & ~right[1:]).sum(0).astype(np.int32),
        "first_learned_epoch": np.where(right.any(0), right.argmax(0) + 1, -1).astype(np.int32),
    }
    return pixels, hardness, [{key: float(value) for key, value in entry.items()} for entry in history]


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def make_findings(rows=None, **changes):
    """What a report shows, without any folder behind it."""
    pixels, hardness, epochs = scored_digits()
    order = np.argsort(hardness["aign"])
    pick = [Images(hardness["sample_id"][part], hardness["label"][part], hardness["aign"][part], pixels[part])
            for part in (order[:24], order[::-1][:24])]  # fmt: skip
    mixes = [Mix(arm, fraction, mix_of(arm, fraction)) for arm in ARMS for fraction in (0.3, 0.5)]
    fields = {
        "title": "EasyCore on digits",
        "note": "Artificial accuracies, real images.",
        "rows": make_rows() if rows is None else rows,
        "hardness": hardness,
        "epochs": epochs,
        "curves": make_curves(make_rows() if rows is None else rows),
        "mixes": mixes,
        "classes": [f"digit {label}" for label in range(10)],
        "easiest": pick[0],
        "hardest": pick[1],
        "lineage": {"parents": {"dataset": {"path": "/data/digits", "fingerprint": "a" * 64}}, "git_commit": "abc"},
    }
    return ReportData(**{**fields, **changes})


def mix_of(arm, fraction):
    _, hardness, _ = scored_digits()
    known = parse_arm(arm)
    ids = choose(known.method, sample_ids=hardness["sample_id"], labels=hardness["label"], fraction=fraction,
                 scores=hardness["aign"], score=known.score, balance=known.balance)  # fmt: skip
    return np.bincount(hardness["label"][ids], minlength=10).tolist()


def done(folder, kind, parents=None, **details):
    """Finish an artifact of this kind in a folder."""
    claim = Claim(str(folder), kind, "identity", "nonce", resumed=False)
    details = {"counts": {}, "config": {}, **details}
    return artifact.finish(claim, fingerprint=hashes.content_hash(kind), parents=parents or {}, wall_seconds=1.0,
                           **details)  # fmt: skip


def make_sweep(root, rows):
    pixels, hardness, epochs = scored_digits()
    count = len(pixels)
    layout = shards.Layout("raw", pixels.shape[1:], None)
    # Rows lie in another order than ids, as in a real dataset.
    placed = np.random.default_rng(0).permutation(count)
    stored = pa.array([pixels[number].tobytes() for number in placed], pa.binary(64))
    columns = [pa.array(placed), pa.array(hardness["label"][placed]), stored]
    shards.write_rows(f"{root}/dataset/shards/train-00000.parquet", layout, pa.table(columns, names=shards.COLUMNS))
    index = {
        "split": ["train"] * count,
        "sample_id": range(count),
        "key": [f"{number}.png" for number in range(count)],
        "label": hardness["label"],
        "sha256": ["0" * 64] * count,
        "input_norm": np.ones(count),
        "shard": [0] * count,
        "row": np.argsort(placed),
    }
    write_index(pa.table(index, schema=INDEX_SCHEMA), f"{root}/dataset")
    dataset = done(
        root / "dataset", "dataset", classes=[f"digit {label}" for label in range(10)], storage="raw", image_size=None,
        image_shape=list(pixels.shape[1:]), counts={"train": count},
        shards={"train": [{"path": "shards/train-00000.parquet", "rows": count}]},
    )  # fmt: skip
    table = done(root / "scores/table", "score_table", epochs=epochs)
    (root / "scores/hardness").mkdir()
    pq.write_table(pa.table(hardness), root / "scores/hardness/hardness.parquet")
    done(root / "scores/hardness", "hardness_table", files=[{"path": "hardness.parquet", "rows": count}])
    scores = done(root / "scores", "scoring_run", {"dataset": dataset, "score_table": table})
    for arm, fraction in {(row["method"] + "/class" * (row["balance"] == "class"), row["fraction"]) for row in rows}:
        known = parse_arm(arm)
        done(root / "sweep/coresets" / f"{arm.replace('/', '-')}_f{fraction}", "coreset", method=known.method,
             score=known.score, balance=known.balance, fraction=fraction,
             class_histogram=mix_of(arm, fraction))  # fmt: skip
    lineage = {"parents": {}, "config": {"norm": "linf"}, "versions": provenance.versions(), "git_commit": "abc123"}
    paths.write_json(f"{root}/sweep/summary.json", {"rows": rows, "curves": make_curves(rows), "lineage": lineage})
    return done(root / "sweep", "sweep", {"dataset": dataset, "scores": scores},
                counts={"rows": len(rows), "trials": 3 * len(rows)}, device_seconds=5400.0)  # fmt: skip
