"""Crops and flips: equal to a plain loop, drawn per image."""

import numpy as np
import pytest
import torch

from easycore_ray.core.augment import AUGMENTATIONS, augment, to_float


def images_of(batch=40, channels=3, height=7, width=9):
    """Random bytes; height and width differ, so that swapping them shows."""
    draws = torch.Generator().manual_seed(4)
    return torch.randint(1, 256, (batch, channels, height, width), dtype=torch.uint8, generator=draws)


def ids_of(batch=40):
    return torch.arange(batch) * 7


def all_views(image, pad, *, flip, reflect):
    """Every view that crop (and flip) can make of one image, by padding and slicing."""
    height, width = image.shape[1:]
    mode = "reflect" if reflect else "constant"
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode=mode))
    crops = [
        padded[:, top : top + height, left : left + width] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
    ]
    return crops + ([crop.flip(2) for crop in crops] if flip else [])


@pytest.mark.parametrize("pad", [2, 6, 9])
@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize(("kind", "flip"), [("crop", False), ("crop-flip", True)])
def test_every_view_is_a_crop_that_slicing_gives(kind, flip, reflect, pad):
    """Each output is one of the views a plain loop makes of its own image, also where padding exceeds the image."""
    images = images_of()
    views = augment(images, ids_of(), kind, seed=0, epoch=1, pad=pad, reflect=reflect)
    for image, view in zip(images, views, strict=True):
        assert any(torch.equal(view, candidate) for candidate in all_views(image, pad, flip=flip, reflect=reflect))


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_padding_decides_the_border_alone(kind):
    """The same crops and flips are drawn for both: what is not border is equal, and no reflected pixel is 0."""
    zeros, reflected = (
        augment(images_of(), ids_of(), kind, seed=3, epoch=2, pad=3, reflect=reflect) for reflect in (False, True)
    )
    assert (zeros == 0).any()
    assert torch.equal(zeros[zeros > 0], reflected[zeros > 0])
    assert (reflected > 0).all()


def test_a_line_of_one_pixel_is_reflected_to_itself():
    """There is nothing else to show."""
    images = images_of(height=1, width=1)
    assert torch.equal(augment(images, ids_of(), "crop-flip", seed=0, epoch=1, pad=2, reflect=True), images)


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize(("kind", "num_views"), [("crop", 9), ("crop-flip", 18)])
def test_all_views_are_drawn_equally_often(kind, num_views, reflect):
    """Of one image repeated, every offset and side turns up about as often as any other."""
    repeats = 400 * num_views
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)  # reflected, 3 × 3 pixels have views in common
    views = augment(image.expand(repeats, -1, -1, -1), ids_of(repeats), kind, seed=0, epoch=1, pad=1, reflect=reflect)
    _, counts = views.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == num_views
    assert counts.min() > 300
    assert counts.max() < 500


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_float_and_uint8_give_the_same_view(kind):
    """Augmenting bytes and then scaling equals scaling and then augmenting."""
    images = images_of()
    bytes_first, floats_first = (
        augment(batch, ids_of(), kind, seed=1, epoch=1) for batch in (images, to_float(images))
    )
    assert bytes_first.dtype == torch.uint8
    assert torch.equal(to_float(bytes_first), floats_first)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_views_repeat_under_a_seed_and_leave_the_images_alone(kind):
    """The same seed and epoch draw the same views; the images passed in do not change."""
    images = images_of()
    before = images.clone()
    first, again = (augment(images, ids_of(), kind, seed=2, epoch=1) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(images, before)
    assert first.shape == images.shape


def test_crop_without_padding_is_the_image():
    """With no room to move there is one crop."""
    images = images_of()
    for reflect in (False, True):
        assert torch.equal(augment(images, ids_of(), "crop", seed=0, epoch=1, pad=0, reflect=reflect), images)


@pytest.mark.parametrize("kind", ["none", "imagenet"])
def test_nothing_happens_to_images_that_are_not_augmented_here(kind):
    """They are not even copied; imagenet views are drawn while images are decoded."""
    images = images_of()
    assert augment(images, ids_of(), kind, seed=0, epoch=1) is images


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_a_view_depends_on_seed_epoch_and_id_alone(kind, reflect):
    """Not on the batch it comes in, nor on its place there; another seed or epoch gives others."""
    images, ids = images_of(), ids_of()
    views = augment(images, ids, kind, seed=5, epoch=3, reflect=reflect)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for part in order.split([1, 22, 17]):
        found = augment(images[part], ids[part], kind, seed=5, epoch=3, reflect=reflect)
        assert torch.equal(found, views[part])
    for seed, epoch in ((6, 3), (5, 4)):
        others = augment(images, ids, kind, seed=seed, epoch=epoch, reflect=reflect)
        assert (others != views).flatten(1).any(dim=1).sum() > 30


def test_draws_of_a_sample_are_independent():
    """Of one another, and from epoch to epoch: edges and sides of 4,000 samples are not correlated."""
    places = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(4000, -1, -1, -1)
    drawn = []
    for epoch in (1, 2):
        views = augment(places, ids_of(4000), "crop-flip", seed=0, epoch=epoch, pad=1)[:, 0].int()
        middle, beside = views[:, 2, 2] - 1, views[:, 2, 3] - 1
        drawn += [middle // 5, middle % 5, beside - middle]
    assert (torch.corrcoef(torch.stack(drawn).float()) - torch.eye(6)).abs().max() < 0.06


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_an_empty_batch_stays_empty(kind):
    """No image, no view, no error."""
    assert augment(images_of(0), ids_of(0), kind, seed=0, epoch=1).shape == (0, 3, 7, 9)


def test_unknown_augmentation_names_the_known_ones():
    """A typo lists what there is."""
    with pytest.raises(ValueError, match=r"none, crop, crop-flip, imagenet, got 'cutout'"):
        augment(images_of(), ids_of(), "cutout", seed=0, epoch=1)


def test_to_float_divides_every_byte_by_255():
    """0 .. 255 become k / 255 in float32, both ends exactly 0 and 1."""
    pixels = to_float(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(pixels, torch.arange(256, dtype=torch.float32) / 255)
    assert pixels[0] == 0
    assert pixels[255] == 1


def test_to_float_refuses_floats():
    """Pixels that may have been divided already are not divided again."""
    with pytest.raises(ValueError, match="uint8"):
        to_float(torch.rand(1, 1, 2, 2))
