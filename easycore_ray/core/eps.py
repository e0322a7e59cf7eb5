"""Perturbation budgets: their norms, ranges and the ways people write them. Free of torch, for command lines."""

import math
from collections.abc import Sequence

NORMS = ("linf", "l2", "l1")
"""Norms in which the perturbation of an evaluation is bounded."""
DENSE_NORMS = ("linf", "l2")
"""Those whose steps move every pixel: of training attacks and of distances to the boundary."""


def check_norm(norm: str, allowed: Sequence[str] = NORMS) -> None:
    """Refuses a norm that is not one of those allowed."""
    if norm not in allowed:
        raise ValueError(f"norm must be one of {', '.join(allowed)}, got {norm!r}")


def check_eps(eps: float, norm: str = "linf", num_pixels: int | None = None) -> None:
    """Refuses an eps that is negative, not finite, or beyond what an image can be changed by.

    Args:
        eps: radius in [0, 1] pixel units.
        norm: one of NORMS.
        num_pixels: values of an image, channels counted; where it is known, an l2 eps beyond its square root, the
            length of black to white, is refused as well, and an l1 eps beyond itself.

    Raises:
        ValueError: with a guess at what was meant, since 8 for 8/255 is the usual slip.
    """
    check_norm(norm)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be a number >= 0 in [0, 1] pixel units, got {eps}")
    if norm == "linf" and eps > 1:
        raise ValueError(f"eps is in [0, 1] pixel units, 8/255 = 0.031; got {float(eps)}: did you mean {eps:g}/255?")
    if norm != "linf" and num_pixels is not None and eps > farthest(norm, num_pixels):
        raise ValueError(
            f"eps is in [0, 1] pixel units, where an image of {num_pixels:,} values can be changed by at most "
            f"{farthest(norm, num_pixels):.4g} in {norm}; got {float(eps)}: did you mean {eps:g}/255?"
        )


def farthest(norm: str, num_pixels: int) -> float:
    """The length of black to white, for an image of so many values: 1, their square root, or their number."""
    return {"linf": 1.0, "l2": math.sqrt(num_pixels), "l1": float(num_pixels)}[norm]


def parse_eps(text: str | float) -> float:
    """The number that "8/255", "0.03" or 0.03 stands for.

    Raises:
        ValueError: the text is neither a finite number nor a fraction of two.
    """
    numerator, slash, denominator = str(text).partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"eps must be a number such as 0.03 or a fraction such as 8/255, got {text!r}")
    return value


def format_eps(eps: float) -> str:
    """The eps as people write it: "8/255", "0.25/255", or a decimal that is short and exact ("0.3", "0")."""
    short = f"{eps:g}"
    if float(short) == eps:
        return short
    quarters = round(eps * 255 * 4)
    if abs(eps * 255 * 4 - quarters) < 4e-4:  # wider than the rounding of an eps that went through float32
        return f"{quarters / 4:g}/255"
    return repr(float(eps))
