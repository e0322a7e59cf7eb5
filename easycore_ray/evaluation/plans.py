"""What evaluate() would do, without doing it."""

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.identity import artifact_identity
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.engine.throughput import Network, Work, assumed_rates, device_of, estimates_of
from easycore_ray.evaluation.threats import check_split, check_threats, threats_of

_BYTES_PER_IMAGE = 16


def plan_evaluate(config: EvaluateConfig, measure: bool = False) -> WorkPlan:
    """The plan of an evaluation."""
    from easycore_ray.evaluation.attacked_model import load_attacked, open_attacked

    dataset = open_dataset(config.dataset)
    parents = open_attacked(config, dataset)
    (attacked,) = parents.values()
    threats = threats_of(config)
    check_threats(threats, dataset.image_shape)
    images = attacked_images(config, check_split(dataset, config.split))
    works = attack_works(config, images)
    model = attacked.manifest["model"]
    network = Network(model["name"], model["width"], dataset.image_shape, device_of(config.gpus_per_worker))
    plan = plan_for(
        "evaluate",
        config,
        "evaluation",
        artifact_identity("evaluation", config, parents | {"dataset": dataset}),
        work=f"attack {images:,} images {len(threats.columns())} times",
        samples=images,
        bytes_written=images * _BYTES_PER_IMAGE,
        estimates=estimates_of(works, assumed_rates(network), config.max_workers),
    )
    if not measure:
        return plan
    from easycore_ray.engine.measure import measure_plan

    return measure_plan(plan, config, dataset, works, load_attacked(config, attacked))


def attacked_images(config: EvaluateConfig, total: int) -> int:
    """How many of the images of a split are attacked."""
    return min(config.num_eval_samples or total, total)


def attack_works(config: EvaluateConfig, images: int) -> list[Work]:
    """What the images of an evaluation go through: clean, corrupted at each severity, and every attack.

    Attacks run at every eps, pgd20 from each of its starts.
    """
    runs = {name: config.pgd_restarts if name == "pgd20" else 1 for name in config.attack if name != "none"}
    return [
        Work("clean", images * (1 + len(threats_of(config).corruption_columns()))),
        *(Work(name, images * len(config.eval_eps) * count) for name, count in runs.items()),
    ]


def image_count(config: EvaluateConfig, dataset: Dataset) -> int:
    """Images that an evaluation of a trial attacks."""
    return attacked_images(config, dataset.num_rows(config.split))
