"""The parts of a study: which arms are compared at which size, for which objective, and what AutoAttack is run on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Trials that belong together: one objective, some arms, some fractions; all data are always among them."""

    training: str
    method: tuple[str, ...]
    fraction: tuple[float, ...]
    cutoff: float = 0.0
    """Share of the hardest samples that stratified drops first."""


@dataclass(frozen=True)
class AttackPart:
    """AutoAttack, beside the PGD of the same images, on the models of other parts, after their last epoch."""

    parts: tuple[str, ...]
    all_seeds: bool = True
    """The first seed's models alone if not."""
    num_samples: int | None = None
    """Images, the same for every model; ``num_autoattack_samples`` of the study if None."""


_HALF = ("random", "random/class", "easycore", "easycore/class", "hardest", "easiest:el2n", "easiest:aum")
_MAIN = ("rs2", "random", "easycore", "easycore/class", "easiest:el2n", "easiest:aum", "dual_beta", "stratified")
_OTHERS = (
    "infobatch",
    "random/class",
    "hardest",
    "middle",
    "band",
    "easiest:loss",
    "easiest:forgetting",
    "easiest:dyn_unc",
    "easiest:cld",
    "easiest:learning_time",
    "easiest:frequency",
    "hardest:dyn_unc",
    "hardest:dual",
)
# The hard cut-off of CCS on CIFAR-10, by AUM: three tenths where 90 % are pruned, as the authors' README has it; a
# tenth at 70 %, none at 50 %, as others quote appendix B of the paper (Zheng et al. 2023, arXiv 2210.15809).
_CCS_CUTOFF = {0.5: 0.0, 0.3: 0.1, 0.1: 0.3}

PARTS = {
    "standard": Part("standard", _HALF, (0.5,)),
    "trades": Part("trades", ("random", "easycore", "easycore/class"), (0.5,)),
    "fractions": Part("standard", _HALF, (0.3, 0.7)),
    "half": Part("trades", _MAIN, (0.5,), _CCS_CUTOFF[0.5]),
    "half-others": Part("trades", _OTHERS, (0.5,)),
    "30-percent": Part("trades", _MAIN, (0.3,), _CCS_CUTOFF[0.3]),
    "10-percent": Part("trades", _MAIN, (0.1,), _CCS_CUTOFF[0.1]),
    "standard-half": Part("standard", _MAIN, (0.5,), _CCS_CUTOFF[0.5]),
}
"""What is trained, by name."""

ATTACK_PARTS = {
    "autoattack": AttackPart(("standard", "trades"), all_seeds=False),
    "half-autoattack": AttackPart(("half",)),
    "half-others-autoattack": AttackPart(("half-others",)),
    "30-percent-autoattack": AttackPart(("30-percent",)),
    "10-percent-autoattack": AttackPart(("10-percent",)),
    "standard-half-autoattack": AttackPart(("standard-half",)),
    "half-autoattack-500": AttackPart(("half",), num_samples=500),
}
"""What is attacked, by name."""


def trained_parts(part: str) -> tuple[str, ...]:
    """The parts whose coresets and models a part works on: its own, or for AutoAttack those it attacks."""
    return ATTACK_PARTS[part].parts if part in ATTACK_PARTS else (part,)
