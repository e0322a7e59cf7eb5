"""One of several processes that train together, with the gradient exchange of Ray's workers but without Ray.

    python tests/together.py RANK FOLDER

Three of them make worlds of 2 and 3 over gloo and leave their weights in the folder, a file for each world, objective
and rank. Attacks are replaced by a fixed shift of each image, since their noise is each worker's own.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from easycore_ray.config.stages import TrainConfig
from easycore_ray.core import gradients, loop
from easycore_ray.core.training_plan import TRAINING
from easycore_ray.data.samples import Samples
from easycore_ray.engine.loader import MemoryLoader
from easycore_ray.engine.plan import make_training_plan
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.worker_group import RayContext

WORLDS = (2, 3)
OBJECTIVES = TRAINING
STEPS, BATCH = 2, 6


def draw_rows():
    """Eleven images: no world shares them evenly, nor do two batches."""
    draws = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (11, 1, 8, 8), dtype=torch.uint8, generator=draws)
    return Samples(torch.arange(11), images, torch.randint(0, 3, (11,), generator=draws))


def feed_of(rank, world):
    """A worker's share of the rows, in two batches."""
    segments = Segments(11, BATCH, 11, world)
    first = rank * 11 // world
    share = Samples(*(column[first : first + segments.rows_of_worker(rank)] for column in draw_rows()))
    return MemoryLoader(share, segments=segments, seed=0, rank=rank)


def shifted(model, inputs, labels, start, plan):
    """Images moved by eps, up or down by turns: what an attack gives, without its noise."""
    signs = torch.ones_like(inputs)
    signs[..., ::2] = -1
    return None if plan.training == "standard" else (inputs + plan.eps * signs).clamp(0, 1)


def train(training, batches, combine=None):
    """The weights after an epoch of a model without batch norm."""
    config = TrainConfig(out="o", dataset="d", training=training, eps=0.1, schedule="constant", warmup_fraction=0.0,
                         augment="none")  # fmt: skip
    plan = make_training_plan(
        config, total_steps=STEPS, training=training, beta=config.beta, eps=config.eps, attack_steps=1
    )
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    loop.train_epoch(model, loop.make_optimizer(model, plan), batches, plan, epoch=1, step=0, combine=combine)
    return model.state_dict()


def combine_of(context, segments):
    """Adds up over the workers; the number of rows is known."""
    sizes = iter(segments.global_batch_sizes(0))

    def combine(tensors, rows):
        context.combine(tensors)
        return next(sizes)

    return combine


def main():
    """Train as this rank of every world it belongs to."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    gradients.attack_batch = shifted
    context = RayContext.__new__(RayContext)  # its constructor asks Ray Train who it is
    context.rank, context.device = rank, torch.device("cpu")
    for world in WORLDS:
        if rank >= world:
            continue
        context.world_size = world
        torch.distributed.init_process_group("gloo", f"file://{folder}/world-{world}", rank=rank, world_size=world)
        for training in OBJECTIVES:
            feed = feed_of(rank, world)
            weights = train(training, feed.shuffled(1, 0), combine_of(context, feed.segments))
            save_file(weights, folder / f"{training}-{world}-{rank}.safetensors")
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
