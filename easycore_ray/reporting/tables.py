"""The words and tables of the report: findings in sentences, the arms, results by objective, the glossary."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from easycore_ray.config.arms import DYNAMIC
from easycore_ray.core.eps import format_eps
from easycore_ray.core.paired_differences import PairedDifference, paired_difference
from easycore_ray.core.selection import METHODS
from easycore_ray.reporting.budgets import budget_text
from easycore_ray.reporting.figures import (
    ATTACK_TITLES,
    OBJECTIVE_TITLES,
    Row,
    Style,
    arm_name,
    attack_names,
    attacks,
    best_differs,
    grouped,
    is_coreset,
    objective,
    percent,
    split_full,
    value,
)
from easycore_ray.reporting.missing_runs import lost_runs, stopped_runs
from easycore_ray.runtime.console import duration

_GLOSSARY = {
    "AIGN": "Average input gradient norm: how strongly the loss reacts to a small change of the image, averaged over "
    "the epochs of the scoring run. Higher is harder.",
    "coreset": "The part of the training data that is kept.",
    "arm": "A way to choose the coreset: a method, the score it goes by, and whether it keeps the mix of classes.",
    "clean accuracy": "Share of the test images that are classified correctly as they are.",
    "robust accuracy": "Share of the test images that are still classified correctly after an attacker has changed "
    "their pixels, under every attack that was run. AutoAttack is stronger than PGD with 20 steps and gives lower "
    "numbers.",
    "ε": "How far the attacker may change a pixel, in units of 1/255 of its range (or the length of the change, for "
    "the Euclidean norm).",
    "TRADES": "Training against an attacker: cross-entropy on the image plus β times the change of the output under "
    "attack (Zhang et al. 2019).",
    "MART": "Like TRADES, with more weight on what is misclassified anyway (Wang et al. 2020).",
    "N-FGSM": "Training on images attacked with one step from strong noise (de Jorge et al. 2022).",
    "PGD-AT": "Training on attacked images alone: cross-entropy after a few steps of PGD (Madry et al. 2018).",
    "best epoch": "The epoch with the highest accuracy on the validation split, under attack where the training is "
    "against one. Where later epochs are less robust, the model overfits the attack.",
    "corrupted images": "Accuracy on test images with noise, blur, JPEG artefacts, less contrast or more brightness: "
    "mean over the corruptions that were run and their five severities (Hendrycks and Dietterich 2019).",
    "robust gap": "Robust accuracy after the best epoch minus that after the last, under PGD with 20 steps, in points: "
    "above 0 where the last epochs have cost robustness (robust overfitting).",
    "averaged weights": "An exponential average of the weights over the steps of a training run, often more robust "
    "than those after any epoch.",
    "worst class": "Accuracy on the class with the lowest one.",
    "steps": "Optimizer steps of one training run. With equal epochs, a smaller coreset is trained for fewer steps.",
    "±": "One standard deviation over seeds.",
    "interval": "95 % t-interval of the mean difference within a seed. Where it contains 0, it takes more seeds to "
    "tell a lead from noise; with few seeds it is wide.",
}
_ADVERSARIAL = {kind: title for kind, title in OBJECTIVE_TITLES.items() if kind != "standard"}
_METRICS = (("clean", "clean_accuracy", "worst_class_clean_accuracy_mean"),
            ("robust", "robust_accuracy", "worst_class_robust_accuracy_mean"))  # fmt: skip
_DOUBT = "‡"
_DOUBT_NOTE = "signs of overestimated robustness in the evaluation of at least one seed"
_LOST = "†"
_LOST_NOTE = "training diverged with at least one seed, which the mean is without"
_STOPPED = "¶"
_STOPPED_NOTE = "at least one seed was stopped early; the mean is over the others, which were ahead, and flatters"
_OVERFITTED = "§"
_OVERFITTED_NOTE = (
    "with at least one seed the last epoch had overfitted to single-step attacks: FGSM leaves far more than PGD on the "
    "validation split"
)


def term(word: str, text: str | None = None) -> str:
    """A word with its explanation on hover, tap or focus."""
    return f'<span class="term" tabindex="0" data-tip="{escape(_GLOSSARY[word])}">{text or word}</span>'


def arm_tag(arm: str, look: Style) -> str:
    """An arm's name behind its marker in its colour."""
    return f'<span class="arm"><i style="color:{look.colour}">{look.symbol}</i>{escape(arm)}</span>'


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways on narrow screens; heads and cells are HTML."""
    return table_frame(heads, (f"<tr class=group>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows))


def table_frame(heads: Sequence[str], lines: Iterable[str], classes: str = "") -> str:
    """A table around lines that are HTML already; ``classes``: of the table."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    attribute = f' class="{classes}"' if classes else ""
    return (
        f'<div class="scroll"><table{attribute}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def bullet_list(texts: Iterable[str]) -> str:
    """Sentences, plain text, as a list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def glance(rows: Sequence[Row], looks: Mapping[str, Style]) -> str:
    """What came out, a line per objective; how to read the page; what the arms are."""
    arms = "".join(
        f"<li>{arm_tag(arm, looks[arm])} {escape(_describe(members[0]))}</li>"
        for arm, members in grouped(rows, arm_name).items()
    )
    several = any(len(row["seeds"]) > 1 for row in rows)
    numbers = (
        f"Numbers are means over seeds {term('±')} their spread." if several else "There is one seed, so no spread."
    )
    ways = ["as usual"] if any(row["training"] == "standard" for row in rows) else []
    ways += [f"with {term(name)}" for kind, name in _ADVERSARIAL.items() if any(r["training"] == kind for r in rows)]
    guide = (
        f"<p>Each result is a model trained on a {term('coreset')}; an {term('arm')} says how it was chosen, and "
        f"<b>full</b> is all the data, the mark to measure against. {term('clean accuracy', 'Clean accuracy')} is on "
        f"test images as they are, {term('robust accuracy')} under an attack of size {term('ε')}. Models are trained "
        f"{' or '.join(ways)}. {numbers}</p>"
    )
    return f'{_findings_table(rows, looks)}<h3>How to read this</h3>{guide}<ul class="arms">{arms}</ul>'


@dataclass(frozen=True)
class MainResult:
    """Robust accuracy for one objective at one eps: all data, the best coreset, random choice of the same size."""

    objective: str
    eps: float
    full: Row | None
    best: Row | None
    random: Row | None

    @property
    def gain(self) -> float | None:
        """Points by which the best coreset is ahead of random choice; None if there is nothing to compare."""
        if self.best is None or self.random is None or self.best is self.random:
            return None
        return 100 * (_robust(self.best) - _robust(self.random))

    @property
    def paired(self) -> PairedDifference | None:
        """The same within the seeds that both have, in points; None also for rows of 0.2.0, which lack its figures."""
        if self.gain is None or self.best is None or self.random is None:
            return None
        best, drawn = (_robust_by_seed(row) for row in (self.best, self.random))
        points = [100 * (best[seed] - drawn[seed]) for seed in best if seed in drawn]
        return paired_difference(points) if points else None


def _robust_by_seed(row: Row) -> dict[int, float]:
    """Robust accuracy by seed."""
    return dict(zip(row["seeds"], row.get("robust_accuracy_by_seed", ()), strict=False))


def difference_text(found: PairedDifference) -> str:
    """``+2.7 ± 2.1 [+0.1, +5.3] (5 of 5)``: mean, spread, 95 % interval, seeds in which it is above 0."""
    if found.std is None:
        return f"{found.mean:+.1f} (one seed)"
    interval = f" [{found.interval[0]:+.1f}, {found.interval[1]:+.1f}]" if found.interval else ""
    return f"{found.mean:+.1f} ± {found.std:.1f}{interval} ({found.ahead} of {found.count})"


def find_main_results(rows: Sequence[Row]) -> list[MainResult]:
    """The finding of every objective, at the largest eps that separates the arms."""
    found = []
    for name, members in grouped(rows, objective).items():
        eps = _telling_eps(members)
        full, others = split_full(row for row in members if row["eps"] == eps)
        coresets = [row for row in others if is_coreset(row)]
        best = max(coresets, key=_robust, default=None)
        drawn = [row for row in coresets if row["method"] == "random" and best and row["fraction"] == best["fraction"]]
        found.append(MainResult(name, eps, full[0] if full else None, best, max(drawn, key=_robust, default=None)))
    return found


def _findings_table(rows: Sequence[Row], looks: Mapping[str, Style]) -> str:
    heads = ("Training", "ε", "All data", "Best coreset", "Random, same size", "Best − random")
    cells = [
        [found.objective, format_eps(found.eps), _accuracy(found.full), _accuracy(found.best, looks),
         _accuracy(found.random), _gain(found)]
        for found in find_main_results(rows)
    ]  # fmt: skip
    return (
        f"<p>{term('robust accuracy', 'Robust accuracy')} in per cent, mean {term('±')} spread.</p>"
        f"{html_table(heads, cells)}"
        f"<figcaption>Best − random: within a seed, with the spread, the 95 % {term('interval')} of the mean, and in "
        "how many seeds it is ahead. The best coreset is picked by these very numbers, which overestimates it a "
        "little, and no interval knows of that.</figcaption>"
    )


def _accuracy(row: Row | None, looks: Mapping[str, Style] | None = None) -> str:
    """A cell: robust accuracy, with arm and fraction below where the arm is not plain from the column."""
    if row is None:
        return "–"
    name = f"{arm_tag(arm_name(row), looks[arm_name(row)])}, {percent(row['fraction'])}" if looks else ""
    return f"{spread_text(row, 'robust_accuracy')}{_marks_tag(row)}<small>{name}</small>"


def _gain(found: MainResult) -> str:
    """A cell: the difference over seeds, and how well it is known."""
    if found.gain is None:
        return "–"
    if found.paired is None:
        return f"{found.gain:+.1f}<small>no figures by seed</small>"
    mean, _, rest = difference_text(found.paired).partition(" ")
    return f"{mean}<small>{rest.strip('()') if found.paired.std is None else rest}</small>"


def result_tables(
    rows: Sequence[Row], looks: Mapping[str, Style], diverged: Sequence[Row] = (), stopped: Sequence[Row] = ()
) -> str:
    """A sortable table per objective; a column per eps; the best coreset of each size is marked. Then the lost runs."""
    intro = (
        f"<p>Per cent, mean {term('±')} spread; below, the {term('worst class')}. Green: the best coreset of its size "
        f"in that column. {term('steps', 'Steps')} and time are those of one training run. Click a heading to sort.</p>"
        f"<p>{budget_text(rows).capitalize()}.</p>"
    )
    if any(map(best_differs, rows)):
        intro += (
            f"<p>Models are those after the last epoch. Where the {term('best epoch')} is another, the line "
            "<i>best</i> says what the model after it reaches.</p>"
        )
    if any("robust_accuracy_averaged_mean" in row for row in rows):
        intro += f"<p>The line <i>averaged</i> is the accuracy with the {term('averaged weights')}.</p>"
    tables = [f"<h3>{name}</h3>{_table(members, looks)}" for name, members in grouped(rows, objective).items()]
    return intro + "".join(tables) + _notes(rows, diverged, stopped)


def _notes(rows: Sequence[Row], diverged: Sequence[Row], stopped: Sequence[Row]) -> str:
    """Below the tables: missing runs, and what the evaluations say of themselves, each sentence once."""
    found = []
    if diverged:
        mark = f'<span class="doubt">{_LOST}</span>'
        found.append(f"<h3>{mark} Diverged, without results</h3>{bullet_list(lost_runs(diverged))}")
    if stopped:
        mark = f'<span class="doubt">{_STOPPED}</span>'
        found.append(f"<h3>{mark} Stopped early, in no mean</h3>{bullet_list(stopped_runs(stopped))}")
    for key, heading in (
        ("suspicious", f'<span class="doubt">{_DOUBT}</span> {_DOUBT_NOTE.capitalize()}'),
        ("warnings", "Warnings of AutoAttack"),
    ):
        messages = [
            f"{objective(row)}, {arm_name(row)}, {percent(row['fraction'])}, {text}"
            for row in rows
            for text in row.get(key, ())
        ]
        if messages:
            found.append(f"<h3>{heading}</h3>{bullet_list(dict.fromkeys(messages))}")
    if any(row.get("overfitted_seeds") for row in rows):
        found.append(f'<p><span class="doubt">{_OVERFITTED}</span> {_OVERFITTED_NOTE.capitalize()}.</p>')
    return "".join(found)


def _other_accuracy(row: Row, name: str) -> str:
    """A cell beside the robust accuracy: that of the worst class, of the best epoch, of the averaged weights."""
    if name == "worst":
        return f"{100 * value(row, 'worst_class_robust_accuracy_mean'):.1f}"
    if name == "best":
        return f"{100 * row['robust_accuracy_pgd20_best_mean']:.1f}" if best_differs(row) else ""
    return spread_text(row, "robust_accuracy_averaged") if "robust_accuracy_averaged_mean" in row else ""


def _marks(row: Row) -> str:
    """What a reader must know of a row's robust accuracy: that it is doubtful, that seeds are missing."""
    marks = {"suspicious": _DOUBT, "diverged_seeds": _LOST, "stopped_seeds": _STOPPED, "overfitted_seeds": _OVERFITTED}
    return "".join(mark for key, mark in marks.items() if row.get(key))


def _marks_tag(row: Row) -> str:
    """The same for the page."""
    return f'<span class="doubt">{_marks(row)}</span>' if _marks(row) else ""


def print_table(rows: Sequence[Row], diverged: Sequence[Row] = (), stopped: Sequence[Row] = ()) -> str:
    """Result rows as aligned text for a terminal, at most 110 columns wide; accuracies in per cent.

    Below them the runs without results, ``diverged`` and ``stopped`` as in a sweep's ``summary.json``.
    """
    without = [f"without results: {line}" for line in lost_runs(diverged)]
    without += [f"stopped early: {line}" for line in stopped_runs(stopped)]
    if not rows:
        return "\n".join(without)
    # With several attacks each has a column, in the place of what the line can do without.
    several = attacks(rows) if len(attacks(rows)) > 1 else []
    has_average = any("robust_accuracy_averaged_mean" in row for row in rows)
    count, each = ["samples"] * (not several and not has_average), [ATTACK_TITLES[name] for name in several]
    others = ["worst"] * (not several or not has_average) + ["best"] * (not several and any(map(best_differs, rows)))
    others += ["averaged"] * has_average
    heads = ("objective", "arm", "kept", *count, "eps", "clean", "robust", *each, *others, "steps", "training")
    widest = max(len(_marks(row)) for row in rows)
    objectives = list(dict.fromkeys(map(objective, rows)))
    ordered = sorted(rows, key=lambda row: (objectives.index(objective(row)), row["eps"], -row["fraction"]))
    lines = [heads] + [
        (
            objective(row).replace("Standard training", "standard"),
            arm_name(row),
            percent(row["fraction"]),
            *(f"{row['num_samples']:,}" for _ in count),
            format_eps(row["eps"]),
            spread_text(row, "clean_accuracy"),
            spread_text(row, "robust_accuracy") + (f" {_marks(row):{widest}}" if widest else ""),
            *(f"{100 * row[f'robust_accuracy_{name}_mean']:.1f}" for name in several),
            *(_other_accuracy(row, name) for name in others),
            f"{row['steps']:,}",
            duration(row["training_seconds"]),
        )
        for row in ordered
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    # Names read from the left, numbers from the right. A name too long for the line is cut.
    widths[1] = max(len(heads[1]), min(widths[1], 110 - sum(widths) + widths[1] - 2 * (len(widths) - 1)))
    text = ["  ".join(_aligned(cell, width, left=column < 2) for column, (cell, width) in
                      enumerate(zip(line, widths, strict=True))).rstrip() for line in lines]  # fmt: skip
    under = "under both" if len(several) == 2 else "under all attacks" if several else attack_names(rows)
    worst = "worst: robust accuracy of the worst class; " * ("worst" in others)
    notes = [f"robust: {under}; {worst}±: standard deviation over seeds; training: per run"]
    notes += textwrap.wrap(budget_text(rows), 110)
    if any(row.get("suspicious") for row in rows):
        notes.append(f'{_DOUBT} {_DOUBT_NOTE}: read "suspicious" in summary.json, and docs/evaluation.md')
    marks = {"diverged_seeds": f"{_LOST} {_LOST_NOTE}", "stopped_seeds": f"{_STOPPED} {_STOPPED_NOTE}"}
    marks["overfitted_seeds"] = f"{_OVERFITTED} {_OVERFITTED_NOTE}"
    notes += [note for key, note in marks.items() if any(row.get(key) for row in rows)]
    if "best" in others:
        notes.append("best: robust under PGD-20 after the best epoch by validation, where that is not the last")
    if has_average:
        notes.append("averaged: robust with the weights averaged over the steps")
    return "\n".join([text[0], "─" * len(text[0]), *text[1:], *notes, *without])


def _aligned(cell: str, width: int, *, left: bool) -> str:
    cut = cell if len(cell) <= width else cell[: width - 1] + "…"
    return cut.ljust(width) if left else cut.rjust(width)


def _describe(row: Row) -> str:
    """What an arm does, from its method's own description."""
    method = METHODS.get(row["method"])
    text = method.doc.replace("``", "") if method else DYNAMIC.get(row["method"], "")
    if row["score"] and row["score"] != "aign":
        text += f" Score: {row['score']}."
    return text + (" The same share of every class." if row["balance"] == "class" else "")


def _telling_eps(rows: Sequence[Row]) -> float:
    """The largest eps at which full data (else anything) is still at least 10 % robust; else the smallest."""
    reference = [row for row in rows if row["method"] == "full"] or rows
    alive = [row["eps"] for row in reference if _robust(row) >= 0.1]
    return max(alive) if alive else min(row["eps"] for row in reference)


def _table(rows: Sequence[Row], looks: Mapping[str, Style]) -> str:
    all_eps = sorted({row["eps"] for row in rows})
    gap_eps = _telling_eps(rows) if any(row.get("robust_gap_mean") is not None for row in rows) else None
    heads = [
        "Arm",
        "Kept",
        "Samples",
        "Clean",
        *([term("corrupted images", "Corrupted")] if _has_corruptions(rows) else []),
        *(f"Robust,<br>ε = {format_eps(eps)}" for eps in all_eps),
        *([] if gap_eps is None else [f"{term('robust gap', 'Gap')},<br>ε = {format_eps(gap_eps)}"]),
        "Steps",
        "Time",
    ]
    groups = grouped(rows, lambda row: (row["fraction"], arm_name(row)))
    ordered = sorted(groups.values(), key=lambda members: (members[0]["method"] != "full", members[0]["fraction"]))
    best = _best(rows)
    body, previous = [], None
    for members in ordered:
        first = members[0]
        classes = "full" if first["method"] == "full" else "group" if first["fraction"] != previous else ""
        previous = first["fraction"]
        cells = _cells(members, (all_eps, gap_eps), looks, best, corrupted=_has_corruptions(rows))
        body.append(f'<tr class="{classes}">{cells}</tr>')
    return table_frame(heads, body, "sortable")


def _cells(
    members: Sequence[Row],
    columns_eps: tuple[Sequence[float], float | None],
    looks: Mapping[str, Style],
    best: Mapping[tuple[str, float, float], float],
    *,
    corrupted: bool,
) -> str:
    """One line of a table: an arm with a fraction, at all eps, and the eps of the gap where it has a column."""
    first, (all_eps, gap_eps) = members[0], columns_eps
    by_eps = {row["eps"]: row for row in members}
    cells = [
        f'<td data-v="{escape(arm_name(first))}">{arm_tag(arm_name(first), looks[arm_name(first)])}</td>',
        f'<td data-v="{first["fraction"]}">{percent(first["fraction"])}</td>',
        f'<td data-v="{first["num_samples"]}">{first["num_samples"]:,}</td>',
    ]
    columns = [("clean", first), *(("robust", by_eps.get(eps)) for eps in all_eps)]
    names = {kind: (name, worst) for kind, name, worst in _METRICS}
    for kind, row in columns:
        if row is None:
            cells.append('<td data-v="-1">–</td>')
            continue
        name, worst = names[kind]
        mean = value(row, f"{name}_mean")
        top = is_coreset(row) and best.get((name, row["eps"], row["fraction"])) == mean
        marks = _marks_tag(row) if kind == "robust" else ""
        cells.append(
            f'<td data-v="{mean}"{" class=best" if top else ""}>{spread_text(row, name)}{marks}'
            f"<small>worst {100 * value(row, worst):.1f}</small>{_each_attack(row) if kind == 'robust' else ''}"
            f"{_at_best(row, name)}{_averaged(row, name)}</td>"
        )
    if corrupted:
        cells.insert(4, _corrupted_cell(first))
    if gap_eps is not None:
        cells.append(_gap_cell(by_eps.get(gap_eps)))
    seconds = first["training_seconds"]
    return "".join(cells) + (
        f'<td data-v="{first["steps"]}">{first["steps"]:,}</td><td data-v="{seconds}">{duration(seconds)}</td>'
    )


def _has_corruptions(rows: Sequence[Row]) -> bool:
    return any("corruption_accuracy_mean" in row for row in rows)


def _corrupted_cell(row: Row) -> str:
    if "corruption_accuracy_mean" not in row:
        return '<td data-v="-1">–</td>'
    return f'<td data-v="{row["corruption_accuracy_mean"]}">{spread_text(row, "corruption_accuracy")}</td>'


def _gap_cell(row: Row | None) -> str:
    """Best − last in points, with its spread over seeds."""
    gap = None if row is None else row.get("robust_gap_mean")
    if row is None or gap is None:
        return '<td data-v="-1">–</td>'
    spread = "" if row["robust_gap_std"] is None else f" ± {100 * row['robust_gap_std']:.1f}"
    return f'<td data-v="{gap}">{100 * gap:+.1f}{spread}</td>'


def _each_attack(row: Row) -> str:
    """Below a cell, with several attacks: the mean under each alone."""
    names = attacks([row])
    if len(names) < 2:
        return ""
    means = [f"{ATTACK_TITLES[name]} {100 * row[f'robust_accuracy_{name}_mean']:.1f}" for name in names]
    return f"<small>{', '.join(means)}</small>"


def _at_best(row: Row, name: str) -> str:
    """A line of a cell: the same accuracy after the best epoch, if that is another than the last."""
    if not best_differs(row):
        return ""
    return f"<small>best {spread_text(row, f'{name}_best')} (epoch {row['best_epoch_mean']:.3g})</small>"


def _averaged(row: Row, name: str) -> str:
    """A line of a cell: the same accuracy of the averaged weights, if there are some."""
    text = spread_text(row, f"{name}_averaged") if f"{name}_averaged_mean" in row else ""
    return text and f"<small>averaged {text}</small>"


def _best(rows: Sequence[Row]) -> dict[tuple[str, float, float], float]:
    """Highest mean by (metric, eps, fraction) among coresets, where there are at least two to compare."""
    found = {}
    coresets = [row for row in rows if is_coreset(row)]
    for (eps, fraction), members in grouped(coresets, lambda row: (row["eps"], row["fraction"])).items():
        if len(members) > 1:
            for _, name, _ in _METRICS:
                found[name, eps, fraction] = max(value(row, f"{name}_mean") for row in members)
    return found


def spread_text(row: Row, name: str) -> str:
    """``41.2 ± 0.5`` in per cent; without spread for a single seed."""
    std = value(row, f"{name}_std")
    mean = f"{100 * value(row, f'{name}_mean'):.1f}"
    return mean if std is None else f"{mean} ± {100 * std:.1f}"


def _robust(row: Row) -> float:
    return value(row, "robust_accuracy_mean")
