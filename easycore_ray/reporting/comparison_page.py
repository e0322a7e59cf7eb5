"""The page of a study that compares arms at equal budgets: a recommendation for each, one picture, a table for each."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from easycore_ray.core.paired_differences import t_reach
from easycore_ray.reporting.arm_comparison import REFERENCES, ArmResult, BudgetComparison, Lead, recommended_arm
from easycore_ray.reporting.figures import INK, MUTED, Panel, Plot
from easycore_ray.reporting.tables import difference_text

_AHEAD, _BEHIND = "#009E73", "#D55E00"


def recommendation(comparison: BudgetComparison) -> str:
    """One sentence on which samples to train on at a budget, in Markdown, and what it rests on."""
    arms = {each.arm: each for each in comparison.arms}
    leads = {arm: each.leads["rs2"] for arm, each in arms.items() if "rs2" in each.leads}
    chosen = recommended_arm(comparison)
    what = f"{comparison.attack_text}, {_count(len(leads), 'arm')}"
    if chosen is None:
        return f"**{comparison.title}: no recommendation.** One seed tells nothing of chance ({what})."
    cost = f"A model costs {arms[chosen].seconds:,.0f} device-seconds"
    if chosen != "rs2":
        more = arms[chosen].seconds / arms["rs2"].seconds - 1
        return (
            f"**{comparison.title}: take `{chosen}`.** It is ahead of rs2 beyond chance, {_lead_text(leads[chosen])} "
            f"({what}). {cost} with its share of scoring, {arms['rs2'].seconds:,.0f} with rs2"
            + (f", which would take {100 * more:.0f} % more steps for that; not compared." if more >= 0.05 else ".")
        )
    best = max(leads, key=lambda arm: leads[arm].difference.mean)
    behind = [f"`{arm}`" for arm, lead in leads.items() if lead.is_known and lead.difference.mean < 0]
    text = (
        f"**{comparison.title}: take `rs2`.** No arm is better than rs2 beyond chance ({what}); the best mean is that "
        f"of `{best}`, {_lead_text(leads[best])}. {cost}, and no scoring."
    )
    return text + (f" Behind rs2 beyond chance: {', '.join(behind)}." if behind else "")


def _lead_text(lead: Lead) -> str:
    return f"in points {difference_text(lead.difference)}, p {_p_text(lead.p_value)}"


def _p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def comparison_sections(comparisons: Sequence[BudgetComparison]) -> list[str]:
    """Sections of Markdown: a recommendation for each budget, the rule behind it, the picture, a table for each."""
    if not comparisons:
        return []
    lines = "\n".join(f"- {recommendation(comparison)}" for comparison in comparisons)
    rule = (
        "The rule: of the arms whose lead over rs2 survives (p ≤ 0.05 in a paired t-test, after Holm's correction for "
        "the number of arms of that budget) the largest; if none does, rs2, which needs no scoring run."
    )
    alt = "Robust accuracy of every arm, with the interval of its difference from rs2"
    found = [f"### Which samples to train on, by budget\n\n{lines}\n\n{rule}\n\n![{alt}](against_rs2.png)"]
    return found + [_section(comparison) for comparison in comparisons]


def _section(comparison: BudgetComparison) -> str:
    heads = ["arm", "seeds", "robust", "ahead of rs2", "p", "ahead of random", "p", "clean", "steps", "training, s",
             "scoring, s", "together, s"]  # fmt: skip
    rows = [*([comparison.full] if comparison.full else []), *comparison.arms]
    body = [_cells(each) for each in rows]
    aligned = ["---", *["---:"] * (len(heads) - 1)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, aligned, *body))
    return f"### {comparison.title}: every arm against rs2 and random\n\n{_notes(comparison)}\n\n{table}"


def _cells(result: ArmResult) -> list[str]:
    cells = [result.arm, str(len(result.seeds))]
    cells.append(f"{result.accuracy:.1f}" + ("" if result.std is None else f" ± {result.std:.1f}"))
    for reference in REFERENCES:
        lead = result.leads.get(reference)
        mark = " \\*" if lead and lead.is_known else ""
        cells += (
            [difference_text(lead.difference) + mark, _p_text(lead.p_value).removeprefix("= ")] if lead else ["", ""]
        )
    seconds = (result.training_seconds, result.scoring_seconds, result.seconds)
    return [*cells, f"{result.clean_accuracy:.1f}", f"{result.steps:,}", *(f"{value:,.0f}" for value in seconds)]


def _notes(comparison: BudgetComparison) -> str:
    """What the numbers of a table are."""
    counts = [lead.difference.count for each in comparison.arms if (lead := each.leads.get("rs2"))]
    found = [
        f"Robust: {comparison.attack_text}, on the same {comparison.num_images:,} images, in per cent, after the last "
        "epoch (last weights, no average). Differences in points, within a seed: mean ± standard deviation, the 95 % "
        "t-interval, in how many seeds it is above 0.",
    ]
    if (least := min(counts)) > 1:
        seeds = _count(least, "seed") if least == max(counts) else f"{least} to {max(counts)} seeds, of which {least}"
        found.append(
            f"p: of the paired t-test, by Holm's correction for the {_count(len(counts), 'arm')} (against random: as "
            f"many, rs2 in its place); * where it is at most 0.05. {seeds} give a test "
            f"{_count(least - 1, 'degree')} of freedom: an interval reaches {t_reach(least):.1f} standard errors, and "
            f"the clearest arm survives from {t_reach(least, len(counts)):.1f} on."
        )
    found.append(
        "Cost: device-seconds of one model; scoring: the scoring run of its seed divided by the models of the seed "
        f"that go by scores, {comparison.num_scored} in this study. Alone, a model pays the whole run. The reduction "
        "of scores and the selection are not counted."
    )
    if comparison.not_attacked:
        found.append(f"Not attacked so, and not compared: {', '.join(comparison.not_attacked)}.")
    return " ".join(found)


def against_rs2(comparisons: Sequence[BudgetComparison]) -> Plot:
    """Robust accuracy of every arm, sorted, around a line at rs2: a panel per budget.

    An arm stands at rs2's mean plus its mean difference within a seed, and its bar is the 95 % interval of that
    difference: one that crosses the line is not told from rs2.
    """
    panels = []
    for comparison in comparisons:
        size = (5.8, 1.8 + 0.27 * (len(comparison.arms) + (comparison.full is not None)))
        alt = f"Robust accuracy under {comparison.attack_text}, arms by their difference from rs2; {comparison.title}"
        chosen = recommended_arm(comparison)
        title = comparison.title + (f": take {chosen}" if chosen else "")
        panels.append(Panel(title, alt, partial(_draw_arms, comparison), size))
    return Plot("against_rs2", panels, columns=2)


def _draw_arms(comparison: BudgetComparison, axes: Axes) -> None:
    line = next(each.accuracy for each in comparison.arms if each.arm == "rs2")
    shown = [(each.arm, each.leads.get("rs2")) for each in comparison.arms if each.arm == "rs2" or "rs2" in each.leads]
    shown.sort(key=lambda entry: entry[1].difference.mean if entry[1] else 0.0)
    axes.axvline(line, color=INK, linewidth=1.2)
    names: list[str] = []
    for arm, lead in shown:
        place, difference = len(names), lead.difference if lead else None
        colour = INK if lead is None else MUTED
        if lead and lead.is_known:
            colour = _AHEAD if lead.difference.mean > 0 else _BEHIND
        mean = line + (difference.mean if difference else 0.0)
        if difference and difference.interval:
            axes.plot([line + end for end in difference.interval], [place] * 2, color=colour, linewidth=2)
        axes.plot([mean], [place], "o", color=colour, markersize=6)
        names.append(arm)
    if comparison.full:
        axes.plot([comparison.full.accuracy], [len(names)], "D", color=INK, markerfacecolor="white", markersize=6)
        names.append("full, all steps")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{comparison.attack_text}, % (95 % interval against rs2)")
    kinds = (
        ("better than rs2 (Holm's correction)", _AHEAD),
        ("not told apart", MUTED),
        ("worse", _BEHIND),
    )
    handles = [Line2D([], [], color=colour, marker="o", label=label) for label, colour in kinds]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8,
                columnspacing=1.2, handlelength=1.2)  # fmt: skip
