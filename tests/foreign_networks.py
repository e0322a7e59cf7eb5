"""Networks as other projects define them: their tensors have the names and shapes of the sources, written anew here.

The sources' own checkpoints are not to be had where these tests run; what they would hold is saved from these modules.
Names are those of yaodongyu/TRADES models/wideresnet.py, kuangliu/pytorch-cifar models/resnet.py and
models/preact_resnet.py, and RobustBench robustbench/model_zoo/architectures/resnet.py. robust_overfitting and Bag of
Tricks have TRADES' WideResNet and the PreActResNet-18 with ``bn`` (RobustBench's ``bn_before_fc``).
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inside, outside, *, size=3, stride=1):
    """A convolution without bias that keeps the image size, up to its stride."""
    return nn.Conv2d(inside, outside, size, stride, padding=size // 2, bias=False)


class WideBlock(nn.Module):
    """TRADES' ``BasicBlock``: batch norm and ReLU first, also for the shortcut where the shape changes."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, outside, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), conv(outside, outside)
        self.convShortcut = conv(inside, outside, size=1, stride=stride) if inside != outside else None

    def forward(self, features):
        active = F.relu(self.bn1(features))
        residual = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (features if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """TRADES' ``NetworkBlock``."""

    def __init__(self, count, inside, outside, stride):
        super().__init__()
        rest = [WideBlock(outside, outside, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(WideBlock(inside, outside, stride), *rest)

    def forward(self, features):
        return self.layer(features)


class WideResNet(nn.Module):
    """TRADES' network, with the stage ``sub_block1`` that it never uses."""

    def __init__(self, depth, width, num_classes):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = conv(3, 16)
        self.block1 = WideStage(count, 16, 16 * width, 1)
        self.sub_block1 = WideStage(count, 16, 16 * width, 1)
        self.block2 = WideStage(count, 16 * width, 32 * width, 2)
        self.block3 = WideStage(count, 32 * width, 64 * width, 2)
        self.bn1, self.fc = nn.BatchNorm2d(64 * width), nn.Linear(64 * width, num_classes)

    def forward(self, inputs):
        features = self.block3(self.block2(self.block1(self.conv1(inputs))))
        return self.fc(F.relu(self.bn1(features)).mean(dim=(2, 3)))


class Block(nn.Module):
    """pytorch-cifar's ``BasicBlock``."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inside, outside, stride=stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = conv(outside, outside), nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(conv(inside, outside, size=1, stride=stride), nn.BatchNorm2d(outside))

    def forward(self, features):
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        return F.relu(residual + self.shortcut(features))


class PreActivated(nn.Module):
    """``PreActBlock``: of pytorch-cifar, or, with the shortcut from the block's input, of RobustBench."""

    def __init__(self, inside, outside, stride, *, from_input):
        super().__init__()
        self.from_input = from_input
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, outside, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), conv(outside, outside)
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(conv(inside, outside, size=1, stride=stride))

    def forward(self, features):
        active = F.relu(self.bn1(features))
        shortcut = features
        if hasattr(self, "shortcut"):
            shortcut = self.shortcut(features if self.from_input else active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class SmallResNet(nn.Module):
    """pytorch-cifar's ``ResNet`` of 18 layers, in any width."""

    def __init__(self, width, num_classes, make_block=Block):
        super().__init__()
        self.conv1 = conv(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for number in range(1, 5):
            inside, outside, stride = sizes[number - 1], sizes[number], 1 if number == 1 else 2
            stage = nn.Sequential(make_block(inside, outside, stride), make_block(outside, outside, 1))
            setattr(self, f"layer{number}", stage)
        self.linear = nn.Linear(8 * width, num_classes)

    def features(self, inputs):
        return self.layer4(self.layer3(self.layer2(self.layer1(inputs))))

    def forward(self, inputs):
        return self.linear(self.features(F.relu(self.bn1(self.conv1(inputs)))).mean(dim=(2, 3)))


class PreActResNet(SmallResNet):
    """``PreActResNet`` of 18 layers: RobustBench's, whose variants are those of the other sources."""

    def __init__(self, width, num_classes, *, bn_before_fc=False, from_input=False):
        super().__init__(width, num_classes, lambda *sizes: PreActivated(*sizes, from_input=from_input))
        del self.bn1
        if bn_before_fc:
            self.bn = nn.BatchNorm2d(8 * width)

    def forward(self, inputs):
        features = self.features(self.conv1(inputs))
        if hasattr(self, "bn"):
            features = F.relu(self.bn(features))
        return self.linear(features.mean(dim=(2, 3)))


class Normalised(nn.Module):
    """A network behind ``normalize``, as RobustBench and many scripts save it."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.normalize = nn.Module()
        self.normalize.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.normalize.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.model = network

    def forward(self, inputs):
        return self.model((inputs - self.normalize.mean) / self.normalize.std)


def trained(network, *, seed=0):
    """The network with random weights, batch norms and running statistics, in evaluation mode."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=draws)
                near_one = name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight"))
                tensor.copy_(1 + 0.2 * noise.abs() if near_one else noise * 0.3 / max(1, tensor[0].numel() ** 0.5))
    return network.eval()
