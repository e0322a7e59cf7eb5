"""Strided 1x1 convolutions of few channels, computed without the fault that oneDNN has in them.

Takes a network and lets such layers read every s-th pixel first and convolve those with stride 1, which is the same
function. The layer's class is exchanged, not the layer, so that names, weights and checkpoints stay what they are, in
users' networks too.

On x86 CPUs, with channels last, oneDNN's gradient of the weights of a strided 1x1 convolution writes outside its
workspace if the layer has fewer input channels than a register holds (8 with AVX2, 16 with AVX-512): wrong
gradients, hangs or a crash, depending on batch size and threads
(https://github.com/uxlfoundation/oneDNN/issues/6035; PyTorch 2.14 has it). Shortcuts of narrow residual networks
are such layers.
"""

from torch import Tensor, nn

MIN_CHANNELS = 16
"""From here on oneDNN computes strided 1x1 convolutions correctly on every CPU."""


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution that picks its pixels before it convolves."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, out_channels, H / stride, W / stride), rounded up, as ``nn.Conv2d`` gives them."""
        rows, columns = self.stride
        picked = features[..., ::rows, ::columns]
        return nn.functional.conv2d(picked, self.weight, self.bias, groups=self.groups)


def spare_narrow_strides(network: nn.Module) -> None:
    """Make every strided 1x1 ``nn.Conv2d`` of fewer than MIN_CHANNELS channels a ``SubsampledConv2d``, in place.

    Classes derived from ``nn.Conv2d`` are left as they are: they may compute something else.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _is_at_risk(layer):
            layer.__class__ = SubsampledConv2d


def _is_at_risk(layer: nn.Conv2d) -> bool:
    unpadded = layer.padding in ((0, 0), "valid")
    narrow = layer.in_channels // layer.groups < MIN_CHANNELS
    return layer.kernel_size == (1, 1) and layer.stride != (1, 1) and unpadded and narrow
