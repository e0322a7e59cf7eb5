"""Architectures of timm (https://github.com/huggingface/pytorch-image-models), made for a dataset's images and classes.

Takes ``timm:NAME`` and sizes, gives an untrained network from normalised pixels to logits. timm is optional, and is
imported here alone.
"""

import difflib

from torch import nn


def timm_network(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """An untrained network of timm that maps (B, C, H, W) to logits (B, num_classes).

    Args:
        name: ``timm:NAME``, NAME as in ``timm.list_models()``.
        num_classes: size of the output.
        image_shape: (channels, height, width) of the inputs. Networks with positions, as vision transformers have,
            are made for this height and width.

    Raises:
        ValueError: timm is not installed, has no such network, or cannot make it for these sizes.
    """
    try:
        import timm  # seconds to import, and few runs need it
    except ImportError as error:
        raise ValueError(
            f"model {name} needs the package timm, which is not installed; "
            "run: pip install 'easycore-ray[timm]' (on every node)"
        ) from error
    architecture = name.partition(":")[2]
    if not timm.is_model(architecture):
        known = timm.list_models()
        near = ", ".join(difflib.get_close_matches(architecture, known, n=3, cutoff=0.5))
        hint = f"the nearest are {near}" if near else "timm.list_models() lists them"
        raise ValueError(f"timm {timm.__version__} has no model {architecture!r} among its {len(known):,}; {hint}")
    sizes = {"num_classes": num_classes, "in_chans": image_shape[0]}
    try:
        try:
            return timm.create_model(architecture, pretrained=False, img_size=tuple(image_shape[1:]), **sizes)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(architecture, pretrained=False, **sizes)  # takes images of any size
    except Exception as error:  # whatever an architecture says of sizes that it cannot take
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"model {name} cannot be made for images {tuple(image_shape)} in {num_classes} classes: {problem}; "
            "take another architecture, or prepare the dataset with another --image-size"
        ) from error
