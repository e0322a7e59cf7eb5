"""Tables and plots of a study, beside its results file: for a README, where people look before they read.

Takes result rows and the records of single trials; gives ``results.md`` and PNG files. Arms are compared with a
random choice of the same size *within* a seed, because what the seeds share (images, weights at the start) would
otherwise drown the difference.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from easycore_ray.core.eps import format_eps
from easycore_ray.core.paired_differences import paired_difference, survives_holm
from easycore_ray.reporting.arm_comparison import Record, compare_budgets
from easycore_ray.reporting.comparison_page import against_rs2, comparison_sections
from easycore_ray.reporting.figures import (
    INK,
    MUTED,
    Panel,
    Plot,
    Row,
    Style,
    arm_name,
    grouped,
    objective,
    percent,
    split_full,
    styles,
    to_png,
)
from easycore_ray.reporting.missing_runs import lost_runs
from easycore_ray.reporting.sweep_plots import trade_off
from easycore_ray.reporting.tables import difference_text, spread_text
from easycore_ray.storage import paths

_PGD = "pgd20"
_SIZE = (5.4, 3.4)


def draw_study(
    rows: Sequence[Row],
    records: Sequence[Record],
    results: str,
    *,
    diverged: Sequence[Row] = (),
    scoring: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write ``results.md`` and plots beside ``results``.

    The plots: ``robust_by_eps.png``, ``against_random.png`` and ``trade_off.png``. With the arm rs2 also
    ``against_rs2.png``, and a recommendation for each budget at the top of the page.

    Args:
        rows: as in a study's summary.
        records: of single trials.
        results: path of the results file.
        diverged: runs without results.
        scoring: what the scoring run of each seed cost, by seed, as in the results; needed with the arm rs2.
    """
    if not rows and not diverged:
        return
    folder = results.rsplit("/", 1)[0]
    looks = styles(rows)
    gains = gains_over_random(records)
    comparisons = compare_budgets(records, scoring or {})
    sections = [
        *comparison_sections(comparisons),
        *_tables(rows),
        *_gains_table(gains),
        *_survivors(gains),
        *_autoattack_table(records),
    ]
    if diverged:
        lost = "\n".join(f"- {text}" for text in lost_runs(diverged))
        sections.append(f"### Diverged, without results\n\n{lost}")
    paths.write_bytes(paths.join(folder, "results.md"), ("\n\n".join(sections) + "\n").encode())
    plots = [_robust_by_eps(rows, looks), trade_off(rows, looks)] if rows else []
    plots += [_against_random(gains, looks)] if gains else []
    plots += [against_rs2(comparisons)] if comparisons else []
    for plot in plots:
        if plot.panels:  # or there is nothing beside all data yet
            paths.write_bytes(paths.join(folder, f"{plot.name}.png"), to_png(plot, looks))


def gains_over_random(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Points of accuracy by which each arm is ahead of ``random`` of the same size and seed.

    Returns:
        One entry per objective, fraction, arm and eps (None: the clean accuracy): ``training, beta, fraction, method,
        score, balance, eps``; ``points``, one number per seed that has both; ``difference``, a ``PairedDifference`` of
        them; and ``survives``: whether it does Holm's correction over all entries.
    """
    plain = [record for record in records if {entry["attack"] for entry in record["robust"]} == {_PGD}]
    # As the rows of the other tables and plots come, whichever part of a study was run first.
    plain.sort(key=lambda record: (record["training"], record["fraction"]))
    found = []
    same_size = grouped(plain, lambda record: (record["training"], record["beta"], record["fraction"]))
    for members in same_size.values():
        drawn = {record["seed"]: record for record in members if arm_name(record) == "random"}
        for arm, mine in grouped(members, arm_name).items():
            if arm in ("random", "full"):
                continue
            pairs = [(record, drawn[record["seed"]]) for record in mine if record["seed"] in drawn]
            if not pairs:
                continue
            names = ("training", "beta", "fraction", "method", "score", "balance")
            same = {name: mine[0][name] for name in names}
            clean = [100 * (a["clean_accuracy"] - b["clean_accuracy"]) for a, b in pairs]
            found.append({**same, "eps": None, "points": clean})
            for place, entry in enumerate(mine[0]["robust"]):
                points = [100 * (a["robust"][place]["accuracy"] - b["robust"][place]["accuracy"]) for a, b in pairs]
                found.append({**same, "eps": entry["eps"], "points": points})
    differences = [paired_difference(gain["points"]) for gain in found]
    survivors = survives_holm([difference.p_value for difference in differences])
    return [
        {**gain, "difference": difference, "survives": survives}
        for gain, difference, survives in zip(found, differences, survivors, strict=True)
    ]


def _tables(rows: Sequence[Row]) -> list[str]:
    """A Markdown table per objective: accuracies in per cent, mean ± standard deviation over seeds."""
    found = []
    for name, members in grouped(rows, objective).items():
        all_eps = sorted({row["eps"] for row in members})
        averaged = any("clean_accuracy_averaged_mean" in row for row in members)
        heads = ["arm", "kept", *["weights"] * averaged, "samples", "seeds", "clean", *map(format_eps, all_eps)]
        heads += ["worst class clean", "steps"]
        lines = []
        for (_, fraction), mine in grouped(members, lambda row: (arm_name(row), row["fraction"])).items():
            by_eps = {row["eps"]: row for row in mine}
            first = mine[0]
            lines.append(
                [
                    arm_name(first),
                    percent(fraction),
                    *["last"] * averaged,
                    f"{first['num_samples']:,}",
                    str(len(first["seeds"])),
                    spread_text(first, "clean_accuracy"),
                    *(spread_text(by_eps[eps], "robust_accuracy_pgd20") if eps in by_eps else "" for eps in all_eps),
                    f"{100 * first['worst_class_clean_accuracy_mean']:.1f}",
                    f"{first['steps']:,}",
                ]
            )
            if "clean_accuracy_averaged_mean" in first:
                robust = [spread_text(by_eps[eps], "robust_accuracy_averaged") if eps in by_eps else ""
                          for eps in all_eps]  # fmt: skip
                clean = spread_text(first, "clean_accuracy_averaged")
                lines.append([*lines[-1][:2], "averaged", *lines[-1][3:5], clean, *robust, "", lines[-1][-1]])
        found.append(f"### {name}: clean, and robust under PGD-20 at each ε\n\n{_markdown(heads, lines)}")
    return found


def _gains_table(gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Points ahead of random, seed by seed: mean ± standard deviation, its 95 % interval, and in how many seeds."""
    found = []
    for name, members in grouped(gains, objective).items():
        all_eps = sorted({gain["eps"] for gain in members if gain["eps"] is not None})
        lines = []
        for (arm, fraction), mine in grouped(members, lambda gain: (arm_name(gain), gain["fraction"])).items():
            by_eps = {gain["eps"]: f"{difference_text(gain['difference'])}{_mark(gain)}" for gain in mine}
            cells = [by_eps.get(eps, "") for eps in (None, *all_eps)]
            lines.append([arm, percent(fraction), *cells])
        heads = ["arm", "kept", "clean", *map(format_eps, all_eps)]
        found.append(
            f"### {name}: points ahead of a random choice of the same size, within a seed\n\n{_markdown(heads, lines)}"
        )
    return found


def _mark(gain: Mapping[str, Any]) -> str:
    return " \\*" if gain["survives"] else ""


def _survivors(gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many comparisons the tables of gains make, and which of them are findings."""
    if not gains:
        return []
    found = [
        f"- {objective(gain)}, {arm_name(gain)}, {percent(gain['fraction'])} kept, "
        f"{'clean' if gain['eps'] is None else format_eps(gain['eps'])}: {difference_text(gain['difference'])}"
        for gain in gains
        if gain["survives"]
    ]
    counts = sorted({len(gain["points"]) for gain in gains})
    seeds = "1 seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
    text = (
        f"The tables above make {len(gains)} comparisons, over {seeds} each. In square brackets: the 95 % t-interval "
        "of the mean difference within a seed. Of many such intervals some miss 0 by chance: "
        f"{_intervals_beside_zero(gains)} of these do, and {len(found) or 'none'} of the comparisons "
        f"{'survives' if len(found) < 2 else 'survive'} Holm's correction (any false finding among all of them: 5 %)"
        f"{', marked *:' if found else '.'}"
    )
    return ["\n\n".join(["### Of many comparisons", text, *(["\n".join(found)] if found else [])])]


def _intervals_beside_zero(gains: Sequence[Mapping[str, Any]]) -> int:
    intervals = [gain["difference"].interval for gain in gains]
    return sum(interval is not None and not interval[0] <= 0 <= interval[1] for interval in intervals)


def _autoattack_table(records: Sequence[Record]) -> list[str]:
    """PGD against AutoAttack on the same images."""
    lines = []
    for record in records:
        by_attack = {entry["attack"]: entry for entry in record["robust"]}
        if "autoattack" in by_attack:
            pgd, auto = by_attack[_PGD], by_attack["autoattack"]
            accuracies = [entry["accuracy"] for entry in (pgd, auto)]
            percents = [f"{100 * value:.1f}" for value in (*accuracies, accuracies[0] - accuracies[1])]
            what = [objective(record), arm_name(record), percent(record["fraction"]), str(record["seed"])]
            lines.append([*what, str(record["num_eval_samples"]), format_eps(auto["eps"]), *percents])
    heads = ["objective", "arm", "kept", "seed", "images", "ε", "PGD-20", "AutoAttack", "PGD-20 − AutoAttack"]
    return [f"### PGD-20 against AutoAttack\n\n{_markdown(heads, lines)}"] if lines else []


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *lines])


def _robust_by_eps(rows: Sequence[Row], looks: Mapping[str, Style]) -> Plot:
    """Robust accuracy against eps: a panel per objective and fraction, full data beside."""
    panels = []
    for name, members in grouped(rows, objective).items():
        full, coresets = split_full(members)
        for fraction, mine in grouped(coresets, lambda row: row["fraction"]).items():
            title = f"{name}, {percent(fraction)} kept"
            panels.append(
                Panel(title, f"Robust accuracy against ε; {title}", partial(_by_eps, [*full, *mine], looks), _SIZE)
            )
    return Plot("robust_by_eps", panels, list(looks))


def _by_eps(rows: Sequence[Row], looks: Mapping[str, Style], axes: Axes) -> None:
    all_eps = sorted({row["eps"] for row in rows})
    places = {eps: place + 1 for place, eps in enumerate(all_eps)}
    groups = grouped(rows, arm_name)
    for number, (arm, members) in enumerate(groups.items()):
        members.sort(key=lambda row: row["eps"])
        shift = min(0.05, 0.8 / len(groups)) * (number - (len(groups) - 1) / 2)
        values = [100 * members[0]["clean_accuracy_mean"]]
        values += [100 * row["robust_accuracy_pgd20_mean"] for row in members]
        spreads = [100 * (members[0]["clean_accuracy_std"] or 0)]
        spreads += [100 * (row["robust_accuracy_pgd20_std"] or 0) for row in members]
        axes.errorbar(
            [shift, *(places[row["eps"]] + shift for row in members)],
            values,
            yerr=spreads,
            color=looks[arm].colour,
            marker=looks[arm].marker,
            linestyle="--" if arm == "full" else "-",
            linewidth=1.2,
            markersize=4,
            elinewidth=0.8,
        )
    _name_ticks(axes, [None, *all_eps])
    axes.set_ylabel("accuracy, %")


def _name_ticks(axes: Axes, all_eps: Sequence[float | None]) -> None:
    """One place per eps, the first for clean images; the usual unit is named once, below the axis."""
    names = [format_eps(eps) for eps in all_eps if eps is not None]
    unit = "/255" if all(name.endswith("/255") for name in names) else ""
    axes.set_xticks(range(len(all_eps)), ["clean", *(name.removesuffix(unit) for name in names)])
    axes.set_xlabel("ε of PGD-20" + (", in 1/255" if unit else ""))


def _against_random(gains: Sequence[Mapping[str, Any]], looks: Mapping[str, Style]) -> Plot:
    """Points ahead of random: a panel per objective and fraction, a dot per seed, a line at the mean."""
    panels = []
    for (name, fraction), members in grouped(gains, lambda gain: (objective(gain), gain["fraction"])).items():
        title = f"{name}, {percent(fraction)} kept"
        alt = f"Points ahead of a random choice of the same size; {title}"
        panels.append(Panel(title, alt, partial(_ahead, members, looks), _SIZE))
    return Plot("against_random", panels, [arm for arm in looks if arm not in ("full", "random")])


def _ahead(gains: Sequence[Mapping[str, Any]], looks: Mapping[str, Style], axes: Axes) -> None:
    all_eps = [None, *sorted({gain["eps"] for gain in gains if gain["eps"] is not None})]
    groups = grouped(gains, arm_name)
    axes.axhline(0, color=INK, linewidth=1)
    for number, (arm, members) in enumerate(groups.items()):
        for gain in members:
            place = all_eps.index(gain["eps"]) + min(0.11, 0.9 / len(groups)) * (number - (len(groups) - 1) / 2)
            look = looks[arm]
            places = [place] * len(gain["points"])
            axes.plot(places, gain["points"], look.marker, color=look.colour, markersize=2.5, alpha=0.6)
            axes.plot([place - 0.045, place + 0.045], [np.mean(gain["points"])] * 2, color=look.colour, linewidth=2.2)
    for place in range(1, len(all_eps)):
        axes.axvline(place - 0.5, color=MUTED, linewidth=0.3)
    _name_ticks(axes, all_eps)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("points ahead of random")
