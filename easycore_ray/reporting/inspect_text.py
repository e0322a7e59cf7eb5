"""What ``inspect`` found, as aligned text of at most 100 columns.

Takes the plain data of the verb ``inspect``, gives lines. A path that does not fit stands on a line of its own,
whole, so that it can be copied.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from easycore_ray.core.eps import format_eps
from easycore_ray.engine.checkpoint_files import best_epoch_text, overfitting_text

WIDTH = 100
_MARGIN = 14
# Lines are not broken here.
_NO_BREAK = "\u00a0"
_METRICS = {
    "train_loss": "loss",
    "train_accuracy": "train accuracy",
    "val_accuracy": "val accuracy",
    "val_robust_accuracy": "val robust accuracy",
    "mean_grad_norm": "mean gradient norm",
    "mean_adv_loss": "mean adversarial loss",
    "adv_accuracy": "adversarial accuracy",
}

Facts = Mapping[str, Any]


def to_text(facts: Facts) -> str:
    """Everything, in sections."""
    sections = [
        list(_head(facts)),
        list(_unfinished(facts)),
        list(_parents(facts)),
        list(_inside(facts)),
        list(_files(facts)),
        list(_schema(facts)),
        list(_config(facts)),
        list(_scores(facts)),
        list(_extremes(facts)),
        list(_verified(facts)),
    ]
    text = "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in sections if lines)
    return text.replace(_NO_BREAK, " ")


def _head(facts: Facts) -> Iterator[str]:
    kind, when = facts["kind"].replace("_", " "), facts.get("created") or facts.get("claimed")
    word = "finished" if facts["state"] == "finished" else "unfinished, claimed"
    yield facts["path"]
    yield f"{kind}, {word} {_time(when)}; {bytes_text(facts['bytes'])} in {count_text(facts['num_files'], 'file')}"
    if facts["state"] != "finished":
        return
    yield ""
    if facts["counts"] and facts["kind"] != "sweep":
        yield from _line("counts", _counts(facts["counts"]))
    if facts["coverage"] is not None:
        yield from _line("coverage", _coverage(facts["coverage"]))
    yield from _details(facts)
    cost = facts["cost"]
    if cost:
        workers = f", {count_text(cost['num_workers'], 'worker')}" if "num_workers" in cost else ""
        yield from _line("cost", f"{_seconds(cost['wall_seconds'])} wall, {_seconds(cost['device_seconds'])} "
                         f"of devices{workers}")  # fmt: skip
    yield from _line("fingerprint", facts["fingerprint"])
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = f"; commit {facts['git_commit'][:12]}" if facts["git_commit"] else ""
    yield from _line("made with", (versions or "unknown versions") + commit)


def _coverage(coverage: Facts) -> str:
    scored = [epoch for epoch in coverage["epochs"] if epoch > 0]
    control = " and the control 0" if 0 in coverage["epochs"] else ""
    once = "every sample once per epoch" if coverage["every_sample_once"] else "NOT every sample once per epoch"
    return (
        f"{count_text(len(scored), 'scored epoch')} ({_ranges(scored)}){control} × {coverage['samples']:,} samples = "
        f"{coverage['rows']:,} rows in {count_text(coverage['parts'], 'part')}: {once}, by the manifest; "
        f"score pass {coverage['score_pass']}{_conditions(coverage)}"
    )


def _conditions(facts: Facts) -> str:
    """The input space of gradients, where it is not that of pixels, and the training, where it is not standard."""
    space, training = facts.get("input_space", "pixel"), facts.get("training", "standard")
    of_inputs = "" if space == "pixel" else f", input space {space}"
    return of_inputs + ("" if training == "standard" else f", training {training}")


def _details(facts: Facts) -> Iterator[str]:
    kind, details = facts["kind"], facts["details"]
    if kind == "dataset":
        yield from _dataset(details)
    elif kind == "coreset":
        score = f"by {details['score']}" if details["score"] else ""
        balance = "balanced by class" if details["balance"] == "class" else ""
        chosen = [details["method"], score, f"fraction {details['fraction']:g}", balance]
        yield from _line("method", ", ".join(word for word in chosen if word))
        if "excluded" in details:
            yield from _line("left out", f"{count_text(details['excluded']['samples'], 'sample')} of "
                             f"{details['excluded']['path']}")  # fmt: skip
        yield from _line("classes", _histogram(details["classes"], details["class_histogram"]))
    elif kind == "checkpoint":
        model = details["model"]
        yield from _line("model", f"{model['name']}, width {model['width']}, {model['num_classes']} classes, images "
                         f"{_shape(model['image_shape'])}")  # fmt: skip
        yield from _line("training", _epochs(details["epochs"]))
        if "best_epoch" in details:
            yield from _line("best epoch", best_epoch_text(details))
        if problem := overfitting_text(details["epochs"]):
            yield from _line("warning", problem)
        if "averaged" in details.get("weights", {}):
            yield from _line("averaged", f"weights over the steps, kept as {details['weights']['averaged']}")
        if "halted" in details:
            yield from _line("halted", f"{details['halted']}; this is the model after the last good epoch")
    elif kind == "evaluation":
        yield from _accuracies(details["summary"])
        if details.get("machine_cost"):
            rate, memory = (details["machine_cost"][name] for name in ("images_per_second", "peak_memory_megabytes"))
            yield from _line("machine", f"{rate:,.3g} images/s and worker, at most {memory:,.0f} MB")
    elif kind == "analysis":
        for claim in details["claims"]:
            yield from _line(claim["key"], f"{claim['outcome']}: {claim['sentence']}")
    elif kind == "audit":
        for sentence in details["sentences"]:
            yield from _line("found", sentence)
    elif kind == "sweep":
        counts = facts["counts"]
        ended = {"diverged": "diverged", "stopped": "stopped early"}
        lost = "".join(f", {counts[name]:,} {word}" for name, word in ended.items() if name in counts)
        yield from _line(
            "counts", f"{count_text(counts['trials'], 'trial')}, {count_text(counts['rows'], 'result row')}{lost}"
        )
    if "sources" in details:
        yield from _line("sources", _sources(details["sources"]))
    if kind in ("scoring_run", "score_table") and details.get("epochs"):
        yield from _line("training", _epochs(details["epochs"]))
    if kind == "hardness_table" and details.get("score_pass"):
        yield from _line("score pass", details["score_pass"] + _conditions(details))


def _sources(sources: Facts) -> str:
    """Where the rows of a run came from, see ``Fit.describe_sources``."""
    main, extra = sources["main"], sources["extra"]
    return (
        f"{main['rows_per_epoch']:,} rows an epoch of {main['samples']:,} samples, and {extra['rows_per_epoch']:,} of "
        f"{extra['samples']:,} extra samples, {extra['batch_rows']:,} in each whole batch; in all {main['rows']:,} and "
        f"{extra['rows']:,}, {extra['passes']:.3g} passes over the extra samples"
    )


def _dataset(details: Facts) -> Iterator[str]:
    if "image_shape" in details:
        yield from _line("images", f"{_shape(details['image_shape'])}, stored {details['storage']}")
    if details.get("skipped"):
        yield from _line("skipped", f"{len(details['skipped']):,} bad images")
    if details.get("duplicates", {}).get("images"):
        yield from _line("duplicates", _duplicates(details["duplicates"]))
    if details.get("passed_over"):
        passed = ", ".join(f"{count:,} {suffix}" for suffix, count in details["passed_over"].items())
        yield from _line("passed over", passed)
    if "names_from" in details:
        yield from _line("class names", f"from {details['names_from']}" if details["names_from"] else "their labels")
    histograms = details.get("class_histogram", {})
    for split, histogram in histograms.items():
        yield from _line(f"{split} classes", _histogram(details["classes"], histogram))
    if not histograms:
        yield from _line("classes", ", ".join(map(str, details["classes"])))


def _duplicates(counted: Mapping[str, int]) -> str:
    """Pictures that the source has more than once, and what became of them."""
    labels = counted["with_different_labels"]
    return (
        f"{counted['images']:,} images are there more than once ({counted['samples']:,} samples), "
        f"{counted['in_train_and_test']:,} of them in train and test"
        f"{f', {labels:,} with different labels' if labels else ''}; "
        + (f"{counted['dropped']:,} copies dropped" if counted["dropped"] else "all kept")
    )


def _accuracies(summary: Facts) -> Iterator[str]:
    yield from _line("clean", f"{_percent(summary['clean_accuracy'], summary['clean_interval'])}, worst class "
                     f"{100 * summary['worst_class_clean_accuracy']:.1f} %")  # fmt: skip
    if "clean_ece" in summary:
        yield from _line("calibration", f"{100 * summary['clean_ece']:.1f} % expected calibration error (15 bins)")
    for row in summary["robust"]:
        robust = f"{_percent(row['accuracy'], row['interval'])} at eps {format_eps(row['eps'])}"
        yield from _line(row["attack"], f"{robust}, worst class {100 * row['worst_class_accuracy']:.1f} %")
    for entry in summary.get("corruptions", ()):
        severities = ", ".join(f"{100 * share:.1f}" for share in entry["by_severity"])
        yield from _line(
            "corrupted", f"{entry['corruption']} {100 * entry['accuracy']:.1f} %, severity 1 to 5: {severities}"
        )
    if "corruption_accuracy" in summary:
        yield from _line("corrupted", f"{100 * summary['corruption_accuracy']:.1f} % on average")
    for text in summary["suspicious"]:
        yield from _line("suspicious", text)
    for text in summary["warnings"]:
        yield from _line("warning", text)


def _unfinished(facts: Facts) -> Iterator[str]:
    if facts["state"] == "finished":
        return
    progress = facts["progress"]
    yield "So far"
    yield from _line("last write", f"{_seconds(progress['seconds_since_last_write'])} ago")
    if "committed_epochs" in progress:
        rows = f", {progress['committed_rows']:,} score rows" if "committed_rows" in progress else ""
        more = progress.get("committed_segments", 0)
        segments = f" and {count_text(more, 'segment')}" if more else ""
        yield from _line("committed", f"{count_text(progress['committed_epochs'], 'epoch')}{segments}{rows}")
        if progress["epochs"]:
            yield from _line("training", _epochs(progress["epochs"]))
    for name in ("diverged", "stopped"):
        if name in progress:
            yield from _line(name, progress[name])
            return
    yield from _line("go on", "run the same command again; it starts from what is committed or finished")


def _parents(facts: Facts) -> Iterator[str]:
    lines = list(_tree(facts.get("parents", []), 1, facts["path"], set()))
    if lines:
        yield "Made from (unchanged: still there, with the fingerprint recorded)"
        yield from lines


def _tree(parents: Sequence[Facts], depth: int, root: str, seen: set[str]) -> Iterator[str]:
    for parent in parents:
        again = parent["path"] in seen and bool(parent.get("parents"))
        seen.add(parent["path"])
        path = parent["path"]
        path = "./" + path[len(root) + 1 :] if path.startswith(root + "/") else path
        state = parent["state"] if parent["state"] == "unchanged" else parent["state"].upper()
        name = "  " * depth + parent["role"].replace("_", " ")
        line = f"{name:<22}  {state:<10}  {parent['fingerprint'][:12]}  {path}{'  (as above)' if again else ''}"
        yield from [line] if len(line) <= WIDTH else [line[: -len(path)].rstrip(), "  " * (depth + 1) + path]
        if not again:
            yield from _tree(parent.get("parents", []), depth + 1, root, seen)


def _inside(facts: Facts) -> Iterator[str]:
    if not facts["inside"]:
        return
    yield f"Artifacts inside ({len(facts['inside'])})"
    width = min(54, max(len(inner["path"]) for inner in facts["inside"]))
    for inner in facts["inside"]:
        state = "DIVERGED" if inner.get("diverged") else "STOPPED" if inner.get("stopped") else "UNFINISHED"
        what = inner["kind"].replace("_", " ") + ("" if inner["state"] == "finished" else f", {state}")
        counts = _counts(inner.get("counts", {}))
        if "summary" in inner:
            best = [f"{row['attack']} {100 * row['accuracy']:.1f} %" for row in inner["summary"]["robust"]]
            counts = ", ".join([f"clean {100 * inner['summary']['clean_accuracy']:.1f} %", *best])
        yield _right_cut(f"  {_left_cut(inner['path'], width):<{width}}  {what:<14}  {counts}", WIDTH)


def _files(facts: Facts) -> Iterator[str]:
    yield "Files"
    names = {name: f"{name} ({count_text(top['files'], 'file')})" if name.endswith("/") else name
             for name, top in facts["files"].items()}  # fmt: skip
    width = max(map(len, names.values()), default=0)
    ranked = sorted(facts["files"].items(), key=lambda item: -item[1]["bytes"])
    for name, top in ranked[:12]:
        yield f"  {names[name]:<{width}}  {bytes_text(top['bytes']):>10}"
    if len(ranked) > 12:
        rest = sum(top["bytes"] for _, top in ranked[12:])
        yield f"  {f'{len(ranked) - 12} more':<{width}}  {bytes_text(rest):>10}"


def _schema(facts: Facts) -> Iterator[str]:
    for name, columns in facts.get("schema", {}).items():
        yield f"Columns of {name}"
        yield from _wrapped(_list(f"{column}: {kind}" if column else kind for column, kind in columns.items()), 2)


def _config(facts: Facts) -> Iterator[str]:
    if not facts.get("config"):
        return
    yield "Configuration, where it differs from the defaults or has none"
    width = max(len(name) for name in facts["config"])
    for name, value in facts["config"].items():
        flag = f"--{name.replace('_', '-')}"
        text = _value(name, value)
        yield from _wrapped(f"{flag:<{width + 2}}  {text}", 2, hang=width + 6)


def _scores(facts: Facts) -> Iterator[str]:
    scores = facts.get("scores")
    if "scores_problem" in facts:
        yield from _wrapped(f"Scores cannot be read: {facts['scores_problem']}", 0, hang=2)
    if not scores or not scores["quantiles"]:
        return
    part = (
        "exact" if scores["sampled_rows"] == scores["rows"]
        else f"from a fixed sample of {scores['sampled_rows']:,} by the hash of their ids; min and max exact"
    )  # fmt: skip
    yield f"Scores of {scores['rows']:,} samples, quantiles {part}"
    width = max(map(len, scores["quantiles"]))
    yield f"  {'':<{width}}" + "".join(f"{name:>9}" for name in scores["quantile_names"])
    for name, values in scores["quantiles"].items():
        yield f"  {name:<{width}}" + "".join(f"{_number(value):>9}" for value in values)
    if "forgetting" in scores["quantiles"]:
        yield "  (forgetting: samples never learned count as one more than the scored epochs)"


def _extremes(facts: Facts) -> Iterator[str]:
    scores = facts.get("scores")
    if not scores or not (scores["easiest"] or scores["hardest"]):
        return
    if scores["dataset"] is None:
        yield "The dataset that was scored is gone or another one: no class names and source keys"
    for end in ("easiest", "hardest"):
        rows = scores[end]
        yield f"{end.capitalize()} by {scores['score']}" + (" (label noise shows here)" if end == "hardest" else "")
        yield f"  {'sample_id':>12}  {scores['score']:>10}  {'label':>6}  {'class':<16}  source key"
        for row in rows:
            name = "" if row["class"] is None else str(row["class"])
            yield (
                f"  {row['sample_id']:>12}  {_number(row['score']):>10}  {row['label']:>6}  "
                f"{_right_cut(name, 16):<16}  {_left_cut(row['key'] or '', WIDTH - 56)}"
            )
        if end == "easiest":
            yield ""
    if "images" in scores:
        yield ""
        yield f"Images: {scores['images']}"


def _verified(facts: Facts) -> Iterator[str]:
    if "verified" not in facts:
        return
    bad = sum(bool(entry["problems"]) for entry in facts["verified"])
    total = len(facts["verified"])
    yield (
        f"Verified: all files of {count_text(total, 'artifact')} reread, nothing wrong"
        if not bad else f"Verified: {bad} of {count_text(total, 'artifact')} NOT as recorded"
    )  # fmt: skip
    for entry in facts["verified"]:
        for problem in entry["problems"]:
            yield from _wrapped(f"{entry['path']}: {problem}", 2, hang=4)


def _line(name: str, text: str) -> Iterator[str]:
    """A name and its text, wrapped beside it."""
    yield from _wrapped(f"{name:<{_MARGIN}}{text}" if len(name) < _MARGIN else f"{name}  {text}", 2, hang=_MARGIN + 2)


def _wrapped(text: str, indent: int, hang: int | None = None) -> Iterator[str]:
    """Lines of at most ``WIDTH``, unless a single word is longer; runs of spaces are kept."""
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent if hang is None else hang),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _list(items: Iterable[str]) -> str:
    """Items in a row, none of them broken over two lines."""
    return ", ".join(item.replace(" ", _NO_BREAK) for item in items)


def _counts(counts: Mapping[str, int]) -> str:
    """Row counts and the like, in words."""
    if set(counts) == {"samples", "of"}:
        return f"{counts['samples']:,} of {counts['of']:,} samples"
    words = ((name.replace("_", " "), value) for name, value in counts.items())
    return _list(f"{value:,} {name.removesuffix('s') if value == 1 else name}" for name, value in words)


def _right_cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _left_cut(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def _epochs(epochs: Sequence[Facts]) -> str:
    """The last epoch's metrics."""
    last = epochs[-1]
    shown = [
        f"{word} {100 * last[key]:.1f} %" if "accuracy" in key else f"{word} {_number(last[key])}"
        for key, word in _METRICS.items()
        if last.get(key) is not None
    ]  # fmt: skip
    return f"{count_text(len(epochs), 'epoch')}; in the last one: {', '.join(shown)}"


def _histogram(classes: Sequence[Any], counts: Sequence[int]) -> str:
    pairs = list(zip(classes, counts, strict=False))
    shown = _list(f"{name}: {count:,}" for name, count in pairs[:20])
    if len(pairs) > 20:
        shown += f" and {len(pairs) - 20} more classes ({min(counts):,} to {max(counts):,} samples each)"
    return shown


def _value(name: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join(format_eps(item) if "eps" in name and isinstance(item, float) else str(item) for item in values)


def _ranges(numbers: Sequence[int]) -> str:
    """``1-20``; ``5, 10, 15`` where there are gaps; the ends of long lists."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:4], "…", *shown[-2:]])


def _number(value: float) -> str:
    """Four digits, in at most nine characters."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.4g}".rstrip(".") if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def _percent(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def count_text(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it is one: ``1 file``, ``1,200 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def bytes_text(size: int) -> str:
    """A size for reading: ``812 B``, ``3.4 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _time(when: Any) -> str:
    return str(when or "").replace("T", " ").replace("+00:00", " UTC")
