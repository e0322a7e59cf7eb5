"""How many wrong labels does an audit find? Some are injected, all is scored, and the lists of audits are compared.

For each share of wrong labels and each seed the labels of a random choice of samples are replaced by other ones, drawn
uniformly; a scoring run sees only those. Printed for each score: precision where as many samples are listed as labels
are wrong, which is the recall as well, and recall where twice as many are listed. Errors that the source has of its own
count as false alarms. Where cleanlab is installed it is given the probabilities of the same network and recipe, out of
sample by 5-fold cross-validation, and is judged alike, its own number of issues included.

    python -m tests.benchmarks.bench_audit --out runs/audit-digits
    python -m tests.benchmarks.bench_audit --out runs/audit-cifar10 --source data/cifar10/train --epochs 20

``--source``: folder of Parquet files with ``img`` or ``image`` (``bytes``) and ``label``; scikit-learn's digits without
it. ``--model``, ``--width``, ``--batch-size`` and so on are those of ``easycore score``. What is finished is not run
again.
"""

import argparse
import importlib.util
import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from easycore_ray import audit, prepare, score
from easycore_ray.config.stages import ScoreConfig
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.core.seeding import derive_seed, numpy_rng
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.plan import make_training_plan
from easycore_ray.runtime.console import say

SCORES = ("aum", "csl", "aign", "el2n", "forgetting")
FOLDS = 5


def digits() -> pa.Table:
    """scikit-learn's digits as rows of images and labels."""
    from sklearn.datasets import load_digits

    found, images = load_digits(), []
    for pixels in np.rint(found.images * (255 / 16)).astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{len(images)}.png"})
    return pa.table({"image": images, "label": found.target})


def inject(rows: pa.Table, share: float, seed: int, folder: Path) -> np.ndarray:
    """Write the rows with a share of wrong labels as a source; which ones are wrong, bool (N,)."""
    labels, rng = rows["label"].to_numpy().astype(np.int64), numpy_rng("wrong labels", seed)
    wrong, num_classes = np.zeros(len(labels), bool), int(labels.max()) + 1
    wrong[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
    labels[wrong] = (labels[wrong] + rng.integers(1, num_classes, wrong.sum())) % num_classes
    place = rows.schema.get_field_index("label")
    if not (folder / "train.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        changed = rows.set_column(place, rows.schema.field("label"), pa.array(labels, rows.schema.field("label").type))
        pq.write_table(changed, folder / "train.parquet")
    return wrong


def judge(listed: np.ndarray, wrong: np.ndarray) -> str:
    """Precision with as many listed as are wrong, recall with twice as many; ids by rank, integers (n,)."""
    count = int(wrong.sum())
    return f"{wrong[listed[:count]].mean():7.1%} {wrong[listed[: 2 * count]].sum() / count:7.1%}"


def out_of_sample(config: ScoreConfig, dataset: Dataset, rows: Samples) -> np.ndarray:
    """Probabilities (N, C) of each sample by a network that was trained on the four fifths it is not in."""
    fold = numpy_rng("folds", config.seed).permutation(len(rows.labels)) % FOLDS
    found = np.zeros((len(fold), dataset.num_classes))
    for number in range(FOLDS):
        inside, held = (torch.from_numpy(np.flatnonzero(mask)) for mask in (fold != number, fold == number))
        steps = -(-len(inside) // config.batch_size)
        plan = make_training_plan(config, total_steps=config.epochs * steps)
        model = build_model(config.model, num_classes=dataset.num_classes, image_shape=dataset.image_shape,
                            width=config.width, mean=dataset.mean, std=dataset.std, seed=config.seed)  # fmt: skip
        optimizer, step = make_optimizer(model, plan), 0
        draws = torch.Generator().manual_seed(derive_seed("fold", number, config.seed) % 2**63)
        for epoch in range(1, config.epochs + 1):
            order = inside[torch.randperm(len(inside), generator=draws)].split(config.batch_size)
            batches = [(rows.sample_ids[part], rows.images[part], rows.labels[part]) for part in order]
            step += train_epoch(model, optimizer, batches, plan, epoch=epoch, step=step).steps
        model.eval()
        with torch.no_grad():
            logits = torch.cat([model(rows.images[part].float() / 255) for part in held.split(config.batch_size)])
        found[held.numpy()] = logits.softmax(1).double().numpy()
        say(f"fold {number + 1} of {FOLDS}: {(logits.argmax(1) == rows.labels[held]).float().mean():.1%} right")
    return found


def judge_cleanlab(config: ScoreConfig, dataset: Dataset, wrong: np.ndarray) -> None:
    """Print what cleanlab finds with the same network."""
    if importlib.util.find_spec("cleanlab") is None:
        print("cleanlab is not installed: left out (pip install cleanlab)", flush=True)
        return
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    started = time.perf_counter()
    rows = read_split(dataset, "train")
    labels, probabilities = rows.labels.numpy(), out_of_sample(config, dataset, rows)
    ranked = np.argsort(get_label_quality_scores(labels, probabilities), kind="stable")
    issues = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence")
    precision, recall = wrong[issues].mean() if len(issues) else np.nan, wrong[issues].sum() / wrong.sum()
    print(
        f"  {'cleanlab':10} {judge(ranked, wrong)}  its own {len(issues):,}: precision {precision:.1%}, recall "
        f"{recall:.1%}; {time.perf_counter() - started:.0f} s of training",
        flush=True,
    )


def measure(options: argparse.Namespace, rows: pa.Table, share: float, seed: int) -> None:
    """Inject, score, audit and print."""
    folder = Path(options.out).absolute() / f"wrong-{100 * share:g}-seed-{seed}"
    wrong = inject(rows, share, seed, folder / "source")
    # Nothing is held out, so that ids are places in the source.
    dataset = prepare(source=f"{folder}/source", val_fraction=0, test_fraction=0, out=f"{folder}/dataset")
    if dataset.num_rows("train") != len(wrong):
        raise SystemExit(f"{dataset.path} has {dataset.num_rows('train'):,} of {len(wrong):,} samples")
    config = ScoreConfig(
        dataset=dataset.path, out=f"{folder}/scores", model=options.model, width=options.width, epochs=options.epochs,
        batch_size=options.batch_size, lr=options.lr, augment="crop", crop_pad=options.crop_pad, seed=seed,
        score_pass=options.score_pass, num_workers=1, tracking_uri="none",
    )  # fmt: skip
    started = time.perf_counter()
    scores = score(config)
    took = time.perf_counter() - started
    print(f"{share:.0%} wrong, seed {seed}: {wrong.sum():,} of {len(wrong):,}; scored in {took:.0f} s")
    print(f"  {'score':10} {'as many':>7} {'twice':>7}", flush=True)
    for name in SCORES:
        made = audit(scores=scores.path, out=f"{folder}/audit-{name}", score=name, label_errors=min(0.99, 2.02 * share))
        table = made.findings()
        listed = table.filter(pa.array([kind == "label_error" for kind in table["kind"].to_pylist()]))
        print(f"  {name:10} {judge(listed['sample_id'].to_numpy(), wrong)}", flush=True)
    judge_cleanlab(config, open_dataset(dataset.path), wrong)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--images", type=int, help="take so many of the first images; all if left out")
    parser.add_argument("--share", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--crop-pad", type=int, default=1)
    parser.add_argument("--score-pass", default="fused+eval")
    options = parser.parse_args()
    rows = digits() if options.source is None else pq.read_table(sorted(options.source.glob("*.parquet")))
    rows = rows.slice(0, options.images or len(rows))
    torch.set_num_threads(1)
    for share in options.share:
        for seed in options.seeds:
            measure(options, rows, share, seed)


if __name__ == "__main__":
    main()
