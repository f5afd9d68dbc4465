"""Small models of ten kinds with random weights, as ONNX files: what a graph optimiser has to be right about.

MiniLM and TinyTitan are written node by node, the rest is exported from torch. Sizes are such that a run takes
milliseconds. B batch, S tokens, C channels, D width.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import minilm
from phases.baking.optimise.export import export_module
from phases.baking.optimise.session import Feeds, SessionSettings, open_session
from phases.baking.optimise.titan_export import export_titan
from phases.baking.optimise.titan_runtime import OnnxTitan
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan

_SIZE = 64  # of images, along each side
Write = Callable[[Path], Feeds]


class Attention(nn.Module):
    """Attention of several heads over (B, S, D), with a bias (H, S, S) of the places where one is given."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, bias, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return out


def _inner(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Block(nn.Module):
    """A transformer's layer with the norm in front."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.attention = Attention(width, heads, causal=causal)
        self.inner = _inner(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norms[0](x), bias)
        out: Tensor = x + self.inner(self.norms[1](x))
        return out


class ViT(nn.Module):
    """Patches of 8 x 8 and four layers."""

    def __init__(self, width: int = 192, layers: int = 4, patch: int = 8, size: int = _SIZE) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2, width))
        self.layers = nn.Sequential(*(Block(width, width // 64) for _ in range(layers)))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.places
        return self.layers(x).mean(1)  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """An embedding in front of layers: GPT with a causal mask, T5's encoder with a bias by distance."""

    def __init__(self, *, causal: bool, width: int = 192, heads: int = 6, count: int = 96) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(1000, width), nn.Parameter(torch.randn(count, width))
        self.layers = nn.ModuleList(Block(width, heads, causal=causal) for _ in range(4))
        self.distances = None if causal else nn.Embedding(2 * count, heads)
        self.head = nn.Linear(width, 1000)

    def forward(self, ids: Tensor) -> Tensor:
        x, bias = self.embedding(ids) + self.places, None
        if self.distances is not None:
            places = torch.arange(ids.shape[1])
            bias = self.distances(places[:, None] - places + ids.shape[1]).permute(2, 0, 1)[None]
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(x)  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    """ResNet's block: 1 x 1, 3 x 3, 1 x 1 and the way round."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        ways = [_conv(inputs, middle, 1), _conv(middle, middle, 3, stride), _conv(middle, 4 * middle, 1)]
        self.ways = nn.ModuleList(ways)
        self.round = _conv(inputs, 4 * middle, 1, stride) if stride > 1 or inputs != 4 * middle else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.ways[1](F.relu(self.ways[0](x))))
        return F.relu(self.ways[2](y) + self.round(x))


def resnet(depths: tuple[int, ...], width: int = 64) -> nn.Module:
    """Return a ResNet of bottlenecks; depths (3, 4, 6, 3) at width 64 make ResNet-50."""
    layers: list[nn.Module] = [_conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, depth in enumerate(depths):
        for number in range(depth):
            layers.append(Bottleneck(inputs, width << stage, 2 if stage and not number else 1))
            inputs = 4 * (width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def small_cnn(width: int = 32) -> nn.Module:
    """Return five convolutions and a product."""
    sizes = [3, width, 2 * width, 4 * width, 4 * width, 8 * width]
    layers = [nn.Sequential(_conv(a, b, 3, 1 + i % 2), nn.ReLU()) for i, (a, b) in enumerate(pairwise(sizes))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * sizes[-1], 1000))


class Inverted(nn.Module):
    """MobileNet's block: out, by channel, and back in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 6 * width
        out, by_channel = _conv(width, wide, 1), _conv(wide, wide, 3, 1, wide)
        self.ways = nn.Sequential(out, nn.Hardswish(), by_channel, nn.Hardswish(), _conv(wide, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.ways(x)
        return out


class MobileNet(nn.Sequential):
    """A stem, four inverted blocks and a head."""

    def __init__(self, width: int = 24) -> None:
        blocks = [Inverted(width) for _ in range(4)]
        super().__init__(_conv(3, width, 3, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


class UNet(nn.Module):
    """Down twice, up twice, and across."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(_conv(a, b) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, 2) for a in (2 * width, width))
        self.across = nn.ModuleList([_conv(4 * width, 2 * width), _conv(2 * width, width)])

    def forward(self, image: Tensor) -> Tensor:
        first = F.silu(self.down[0](image))
        second = F.silu(self.down[1](F.max_pool2d(first, 2)))
        x = F.silu(self.down[2](F.max_pool2d(second, 2)))
        for up, across, skipped in zip(self.up, self.across, (second, first), strict=True):
            x = F.silu(across(torch.cat([up(x), skipped], 1)))
        return x


class Mixer(nn.Module):
    """MLP-Mixer: products over places in turns with products over channels."""

    def __init__(self, width: int = 192, places: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.over_places, self.over_width = (
            nn.ModuleList(nn.Sequential(nn.LayerNorm(size), _inner(size)) for _ in range(layers))
            for size in (places, width)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2)
        for places, width in zip(self.over_places, self.over_width, strict=True):
            x = x + places(x)
            x = x + width(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = x.mean(2)
        return out


def write_minilm(path: Path) -> Feeds:
    """Write two layers of a BERT and return 64 tokens, none of them masked."""
    shape = minilm.Shape(384, 2, words=1000)
    minilm.write(path, minilm.weights(None, shape), shape)
    ids = np.random.default_rng(0).integers(0, shape.words, (1, 64))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def write_titan(path: Path) -> Feeds:
    """Write a whole TinyTitan and return tokens for it to read."""
    torch.manual_seed(0)
    export_titan(TinyTitan(PRESETS["nano"]).eval(), path)
    return OnnxTitan(path).stream().feeds(np.random.default_rng(0).integers(0, PRESETS["nano"].vocab_size, (1, 32)))


def write_module(make: Callable[[], nn.Module], example: tuple[int, ...], path: Path) -> Feeds:
    """Export a module that reads an image of the shape `example`, or ids where it has two axes."""
    torch.manual_seed(0)
    inputs = torch.randn(example) if len(example) > 2 else torch.randint(0, 1000, example)
    export_module(make().eval(), [inputs], path)
    (name,) = (each.name for each in open_session(path, SessionSettings()).get_inputs())
    return {name: inputs.numpy()}


_IMAGE, _TEXT = (1, 3, _SIZE, _SIZE), (1, 96)
ZOO: dict[str, Write] = {
    "BERT": write_minilm,
    "TinyTitan": write_titan,
    "GPT": partial(write_module, partial(Tokens, causal=True), _TEXT),
    "T5 encoder": partial(write_module, partial(Tokens, causal=False), _TEXT),
    "ViT": partial(write_module, ViT, _IMAGE),
    "MLP-Mixer": partial(write_module, Mixer, _IMAGE),
    "ResNet": partial(write_module, partial(resnet, (1, 1, 1, 1), 32), _IMAGE),
    "MobileNet": partial(write_module, MobileNet, _IMAGE),
    "U-Net": partial(write_module, UNet, _IMAGE),
    "CNN": partial(write_module, small_cnn, _IMAGE),
}
