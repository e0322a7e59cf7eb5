"""One word per meaning: an option that several jobs have means the same in each."""

import dataclasses
import typing

from easycore_ray.config import evaluation, experiments, inspection, stages
from easycore_ray.config.base import Checked
from easycore_ray.config.signatures import field_docs

KINDS = [kind for module in (stages, evaluation, inspection, experiments) for name, kind in sorted(vars(module).items())
         if name.endswith("Config") and isinstance(kind, type) and issubclass(kind, Checked)
         and kind.__module__ == module.__name__]  # fmt: skip
# Of one thing there and of several here, or the same thing said for the job at hand.
DIFFERENT_TYPES = {
    "training": "a single run has one objective, a sweep several",
    "beta": "a single run and a study have one, a sweep several",
    "method": "a coreset is made by one, a sweep compares several",
    "fraction": "a coreset has one, a sweep several",
    "attack": "a sweep never leaves pgd20 out",
    "scores": "an analysis takes several runs",
    "checkpoint": "an analysis takes several models",
    "dataset": "some jobs find it through their other inputs",
    "norm": "only evaluations have l1",
    "num_workers": "a study scores with one number of workers",
    "format": "of a source, and of an exported file",
    "score": "a coreset leaves it to the method, an audit does not",
    "model": "a checkpoint that is evaluated knows its own",
}


def fields():
    """(name, configuration, type, help) of every option of every job."""
    for kind in KINDS:
        hints = typing.get_type_hints(kind, include_extras=True)
        docs = field_docs(kind)
        for spec in dataclasses.fields(kind):
            yield spec.name, kind.__name__, hints[spec.name], docs[spec.name]


def test_an_option_has_one_type_in_all_jobs():
    """But for those that say why not."""
    types = {}
    for name, _, hint, _ in fields():
        types.setdefault(name, set()).add(str(hint))

    assert {name for name, found in types.items() if len(found) > 1} == set(DIFFERENT_TYPES)


def test_every_option_is_explained():
    """In a sentence at least."""
    short = [
        (kind, name) for name, kind, _, text in fields() if not text.rstrip().endswith((".", ")")) or len(text) < 10
    ]

    assert short == []
