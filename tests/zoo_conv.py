"""User-written convolutional networks: shortcuts, concatenations, groups, shuffles, gates and changes of resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch-norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def pooled(x: Tensor) -> Tensor:
    """Mean over the image: (batch, channels)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class BasicBlock(nn.Module):
    """The ResNet block, with a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, inner: int | None = None) -> None:
        super().__init__()
        inner = outputs if inner is None else inner
        self.conv1 = conv_bn(inputs, inner, stride=stride)
        self.conv2 = conv_bn(inner, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, first: int = 8, second: int = 16, inner: int | None = None) -> None:
        super().__init__()
        self.stem = conv_bn(3, first)
        self.stage1 = nn.Sequential(*(BasicBlock(first, first, inner=inner) for _ in range(2)))
        down = BasicBlock(first, second, stride=2, inner=inner)
        self.stage2 = nn.Sequential(down, *(BasicBlock(second, second, inner=inner) for _ in range(2)))
        self.fc = nn.Linear(second, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.stage2(self.stage1(torch.relu(self.stem(x))))))


class OptionABlock(nn.Module):
    """The CIFAR ResNet block: the shortcut takes every second pixel and pads the new channels with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pad = (outputs - inputs) // 2
        self.conv1 = conv_bn(inputs, outputs, stride=2 if self.pad else 1)
        self.conv2 = conv_bn(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0.0)
        return torch.relu(y + x)


class OptionAResNet(nn.Module):
    def __init__(self, first: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, first)
        widths = [first * times for times in (1, 1, 1, 2, 2, 2, 4, 4, 4)]
        before = [first, *widths[:-1]]
        self.layers = nn.Sequential(*(OptionABlock(a, b) for a, b in zip(before, widths, strict=True)))
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.layers(torch.relu(self.stem(x)))))


class UNet(nn.Module):
    """Two skips joined by concatenation; one way up by transposed convolution, one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1 = conv_bn(3, 8)
        self.enc2 = conv_bn(8, 16)
        self.middle = conv_bn(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 12, kernel_size=2, stride=2)
        self.dec2 = conv_bn(12 + 16, 20)
        self.up1 = nn.Conv2d(20, 10, kernel_size=1)
        self.dec1 = conv_bn(10 + 8, 14)
        self.out = nn.Conv2d(14, 2, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = torch.relu(self.enc1(x))
        skip2 = torch.relu(self.enc2(F.max_pool2d(skip1, 2)))
        x = torch.relu(self.middle(F.max_pool2d(skip2, 2)))
        x = torch.relu(self.dec2(torch.cat([self.up2(x), skip2], dim=1)))
        x = self.up1(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
        return self.out(torch.relu(self.dec1(torch.cat([x, skip1], dim=1))))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, bottleneck, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(bottleneck), nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(torch.cat(features, dim=1))))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * i, growth=4, bottleneck=12) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.norm = nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = self.transition(torch.cat(features, dim=1))
        return self.fc(pooled(torch.relu(self.norm(x))))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels dealt out over the groups, as in ShuffleNet."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit1(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.reduce = conv_bn(width, inner, kernel=1, groups=groups)
        self.depthwise = conv_bn(inner, inner, groups=inner)
        self.expand = conv_bn(inner, width, kernel=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(torch.relu(self.reduce(x)), self.groups)
        return torch.relu(x + self.expand(self.depthwise(y)))


class ShuffleNet1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.units = nn.Sequential(*(ShuffleUnit1(32, 32, groups=2) for _ in range(2)))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.units(self.stem(x))))


class ShuffleUnit2(nn.Module):
    """ShuffleNet v2: split in two, transform one half, concatenate, shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, 20, kernel=1),
            nn.ReLU(),
            conv_bn(20, 20, groups=20),
            conv_bn(20, half, kernel=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat((left, self.branch(right)), dim=1), 2)


class ShuffleNet2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.units = nn.Sequential(ShuffleUnit2(32), ShuffleUnit2(32))
        self.last = conv_bn(32, 24, kernel=1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.last(self.units(torch.relu(self.stem(x)))))))


class GroupedBlock(nn.Module):
    """The ResNeXt bottleneck."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(width, inner, kernel=1)
        self.conv2 = conv_bn(inner, inner, groups=groups)
        self.conv3 = conv_bn(inner, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))))


class GroupedNet(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(*(GroupedBlock(16, 32, groups) for _ in range(2)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.blocks(self.stem(x))))


class DepthwiseMultiplier(nn.Module):
    """Depthwise convolution that makes two channels of each, then pointwise; then the plain separable pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.depthwise1 = conv_bn(8, 16, groups=8)
        self.pointwise1 = conv_bn(16, 24, kernel=1)
        self.depthwise2 = conv_bn(24, 24, groups=24)
        self.pointwise2 = conv_bn(24, 16, kernel=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.pointwise1(F.relu6(self.depthwise1(F.relu6(self.stem(x))))))
        return self.fc(pooled(torch.relu(self.pointwise2(F.hardswish(self.depthwise2(x))))))


class GroupNormBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1), nn.GroupNorm(3, inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1), nn.GroupNorm(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(GroupNormBlock(32, 24) for _ in range(2))
        self.norm = nn.GroupNorm(4, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(pooled(F.silu(self.norm(x))))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, squeezed), nn.Linear(squeezed, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class SqueezeExciteBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(width, inner), conv_bn(inner, width)
        self.gate = SqueezeExcite(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.gate(self.conv2(torch.relu(self.conv1(x)))))


class SqueezeExciteNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(*(SqueezeExciteBlock(16, 24) for _ in range(2)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.blocks(torch.relu(self.stem(x)))))


class ChannelsLastMLP(nn.Module):
    """Norm and MLP over the last dimension, added back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class PatchMerging(nn.Module):
    """Swin: the four pixels of each 2x2 square side by side, then a projection."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class PatchMergingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, kernel_size=2, stride=2)
        self.stage1 = nn.Sequential(ChannelsLastMLP(16), ChannelsLastMLP(16))
        self.merge = PatchMerging(16, 24)
        self.stage2 = nn.Sequential(ChannelsLastMLP(24), ChannelsLastMLP(24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x).permute(0, 2, 3, 1))
        return self.head(self.stage2(self.merge(x)).mean(dim=(1, 2)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Norms over channels in the last place between permutes, layer-scale, a strided convolution between stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, kernel_size=4, stride=4)
        self.stage1 = nn.Sequential(ConvNeXtBlock(12), ConvNeXtBlock(12))
        self.norm = nn.LayerNorm(12)
        self.down = nn.Conv2d(12, 16, kernel_size=2, stride=2)
        self.stage2 = nn.Sequential(ConvNeXtBlock(16), ConvNeXtBlock(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.stage2(self.down(x)).mean(dim=(-2, -1)))


class AuxiliaryHead(nn.Module):
    """A second head that exists only while training: a tuple in training, a tensor in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(3, 12), conv_bn(12, 16)
        self.aux_conv, self.aux_fc = conv_bn(12, 10, kernel=1), nn.Linear(10, 5)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        aux = self.aux_fc(pooled(torch.relu(self.aux_conv(x)))) if self.training else None
        out = self.fc(self.dropout(pooled(torch.relu(self.conv2(x)))))
        return out if aux is None else (out, aux)


class FlattenNet(nn.Module):
    """The image is flattened before the first linear layer: channels x pixels in one dimension."""

    def __init__(self, first: int = 8, second: int = 16, inner: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.fc1 = nn.Linear(second * 2 * 2, inner)
        self.fc2 = nn.Linear(inner, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


class PixelShuffle(nn.Module):
    """Super-resolution: channels become pixels, twice; the last time they become the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 12 * 4, 3, padding=1)
        self.conv3 = nn.Conv2d(12, 3 * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shuffle(self.conv2(torch.relu(self.conv1(x)))))
        return self.shuffle(self.conv3(x))


class FiLM(nn.Module):
    """An image, and a vector that scales and shifts the image's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(6, 24), nn.Linear(24, 2 * 16)
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.fc2(torch.relu(self.fc1(vector))).chunk(2, dim=1)
        x = self.conv1(image)
        x = torch.relu(x * (1 + scale[..., None, None]) + shift[..., None, None])
        return self.head(pooled(torch.relu(self.conv2(x))))
