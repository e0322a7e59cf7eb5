"""InfoBatch: train each epoch on a part of the samples, chosen by the losses that they had, and weigh it for the whole.

Qin et al., InfoBatch (ICLR 2024, arXiv 2303.04947). Samples whose last loss is at least the mean are kept. Of the
others each is left out with probability r, and the loss of those that stay is multiplied by 1 / (1 - r): summed over an
epoch, the gradient that is expected is that of all samples. Every sample is kept in the first epoch, in which none has
a loss yet, and in the last eighth of the run. So an epoch has fewer steps, each with a gradient that is larger on
average.

What differs from the authors' code (NUS-HPC-AI-Lab/InfoBatch):

- Each sample is drawn by itself, from (seed, epoch, sample_id): the number kept varies, and no draw depends on how
  samples are shared by workers. There a fixed number of those below the mean is drawn from one generator.
- The last eighth is counted in steps, and the pruned epoch under way ends where it begins. There it is counted in
  epochs, whose number is fixed, so that pruning shortens the run; here the steps are.
- The weighted losses of a global batch are summed and divided by its number of rows, whatever worker has them. There
  they are averaged by each worker over its part of the batch. In full batches both are the same: neither divides by the
  sum of the weights.
- A sample without a loss is kept with weight 1 and is not in the mean. There it has an initial loss of 3.
"""

import math

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.hashing import uniform_draws
from easycore_ray.core.seeding import derive_seed

PRUNED_SHARE = 0.875
"""Share of the steps in which epochs are pruned: delta of the paper."""


def infobatch_weights(
    losses: NDArray[np.float32], sample_ids: NDArray[np.integer], *, ratio: float, seed: int, epoch: int
) -> NDArray[np.float32]:
    """What the loss of each sample is multiplied by in an epoch; 0 where the sample is left out.

    Args:
        losses: float32 (n,), in nats, of each sample when it was last trained on; NaN where it has not been.
        sample_ids: integers (n,), of the same samples.
        ratio: r, share of those below the mean that is left out, in (0, 1).
        seed: of the run.
        epoch: from 1.

    Returns:
        float32 (n,): 0, 1 or 1 / (1 - r).
    """
    weights = np.ones(len(losses), np.float32)
    seen = ~np.isnan(losses)
    if not seen.any():
        return weights
    low = seen & (losses < losses[seen].mean(dtype=np.float64))
    kept = uniform_draws(derive_seed("infobatch", seed, epoch), sample_ids) >= ratio
    weights[low] = np.where(kept[low], 1 / (1 - ratio), 0)
    return weights


def last_pruned_step(total_steps: int) -> int:
    """Steps of a run after which no epoch is pruned: at least the last eighth sees all samples."""
    return math.floor(PRUNED_SHARE * total_steps)
