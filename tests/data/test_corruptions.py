"""Corruptions against other libraries: SciPy's blur, torchvision's JPEG, matplotlib's HSV; noise by its moments."""

import matplotlib.colors
import numpy as np
import pytest
import scipy.ndimage
import torch
from torchvision.io import decode_jpeg, encode_jpeg

from easycore_ray.core.names import CORRUPTION_NAMES, SEVERITIES, chosen_corruptions
from easycore_ray.data.corruptions import CORRUPTIONS, corrupt

# As in make_cifar_c.py and make_imagenet_c.py, copied from there once more.
CIFAR_C = {"gaussian_noise": (0.04, 0.1), "gaussian_blur": (0.4, 1.0), "jpeg_compression": (80, 40),
           "contrast": (0.75, 0.15), "brightness": (0.05, 0.3)}  # fmt: skip
IMAGENET_C = {"gaussian_noise": (0.08, 0.38), "gaussian_blur": (1, 6), "jpeg_compression": (25, 7),
              "contrast": (0.4, 0.05), "brightness": (0.1, 0.5)}  # fmt: skip


def images_of(count=6, size=16, channels=3):
    """Smooth random images, with some pixels at 0 and 255, black and white ones among them."""
    draws = np.random.default_rng(3)
    blobs = scipy.ndimage.gaussian_filter(draws.normal(size=(count, channels, size, size)), (0, 0, 2, 2))
    pixels = np.clip(128 + 600 * blobs, 0, 255).astype(np.uint8)
    pixels[0], pixels[1] = 0, 255
    return torch.tensor(pixels)


def by_hand(name, image, level):
    """One image (C, H, W) by another library, truncated to uint8 as the original does."""
    x = image.permute(1, 2, 0).numpy() / 255.0
    if name == "jpeg_compression":
        return decode_jpeg(encode_jpeg(image, quality=level))
    if name == "gaussian_blur":
        x = scipy.ndimage.gaussian_filter(x, sigma=(level, level, 0), mode="nearest", truncate=4.0)
    elif name == "contrast":
        means = x.mean(axis=(0, 1), keepdims=True)
        x = (x - means) * level + means
    else:
        hsv = matplotlib.colors.rgb_to_hsv(x)
        hsv[:, :, 2] = np.clip(hsv[:, :, 2] + level, 0, 1)
        x = matplotlib.colors.hsv_to_rgb(hsv)
    return torch.tensor(np.floor(np.clip(x, 0, 1) * 255 + 1e-6).astype(np.uint8)).permute(2, 0, 1)


def test_the_names_are_those_of_the_functions():
    """Command lines offer them without torch."""
    assert tuple(CORRUPTIONS) == CORRUPTION_NAMES
    assert chosen_corruptions(["contrast", "gaussian_noise"]) == ("gaussian_noise", "contrast")
    assert chosen_corruptions(["all"]) == CORRUPTION_NAMES


@pytest.mark.filterwarnings("ignore:The image decoding")
@pytest.mark.parametrize("name", [name for name in CORRUPTION_NAMES if name != "gaussian_noise"])
@pytest.mark.parametrize(("size", "levels"), [(16, CIFAR_C), (64, IMAGENET_C)])
def test_is_what_other_libraries_make_of_it(name, size, levels):
    """The mildest and the severest, pixel by pixel."""
    images = images_of(size=size)
    for severity, level in zip((1, 5), levels[name], strict=True):
        found = corrupt(name, severity, images, torch.arange(len(images)), seed=0)
        for image, one in zip(images, found, strict=True):
            assert torch.equal(one, by_hand(name, image, level))


@pytest.mark.parametrize(("size", "levels"), [(32, CIFAR_C), (64, IMAGENET_C)])
def test_noise_has_its_standard_deviation(size, levels):
    """On gray, from which little is cut off; independent from pixel to pixel."""
    gray = torch.full((20, 3, size, size), 128, dtype=torch.uint8)
    for severity, scale in zip((1, 5), levels["gaussian_noise"], strict=True):
        noise = corrupt("gaussian_noise", severity, gray, torch.arange(20), seed=0).double() / 255 - 128 / 255
        expected = np.clip(np.random.default_rng(0).normal(scale=scale, size=10**6), -128 / 255, 127 / 255).std()
        assert float(noise.std()) == pytest.approx(expected, rel=0.02)
        assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.03 * scale**2


def test_noise_depends_on_the_image_and_the_seed_alone():
    """Not on its shard; another id or seed draws other noise; severities differ by its strength."""
    images, ids = images_of(8), torch.tensor([4, 9, 2, 30, 31, 7, 8, 1])
    whole = corrupt("gaussian_noise", 3, images, ids, seed=1)
    order = torch.tensor([5, 2, 7])

    assert torch.equal(corrupt("gaussian_noise", 3, images[order], ids[order], seed=1), whole[order])
    assert not torch.equal(corrupt("gaussian_noise", 3, images, ids, seed=2), whole)
    assert not torch.equal(corrupt("gaussian_noise", 3, images[:1], ids[1:2], seed=1), whole[:1])


@pytest.mark.parametrize("name", CORRUPTION_NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_severities_take_more_and_more(name, channels):
    """The distance to the clean image rises; shape and type stay."""
    images = images_of(12, size=32, channels=channels)[2:]
    found = [corrupt(name, severity, images, torch.arange(10), seed=0) for severity in SEVERITIES]
    distances = [float((one.double() - images.double()).abs().mean()) for one in found]

    assert all(one.shape == images.shape and one.dtype == torch.uint8 for one in found)
    assert distances == sorted(distances)
    assert 0 < distances[0] < distances[-1]


def test_what_does_not_exist_is_refused():
    """Names and severities; no images are no error."""
    with pytest.raises(ValueError, match="no corruption 'fog' of severity 1; names are gaussian_noise"):
        corrupt("fog", 1, images_of(), torch.arange(6), seed=0)
    with pytest.raises(ValueError, match="of severity 6"):
        corrupt("contrast", 6, images_of(), torch.arange(6), seed=0)
    assert corrupt("contrast", 1, images_of()[:0], torch.arange(0), seed=0).shape == (0, 3, 16, 16)
