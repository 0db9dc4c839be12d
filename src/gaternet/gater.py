"""The gater: images to gate logits, G(x) = D(E(x)) before the binarizer (paper, section 3.2)."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional as F


class Gater(nn.Module):
    """A feature extractor E and fully connected layers D: images (N, C, H, W) → logits (N, G).

    D is FC1 → BatchNorm → ReLU → FC2 with a bottleneck between (paper, section 3.2.2). How many
    gates there are is the backbone's matter, so `connect` builds D; GaterNet calls it.

    extractor: any CNN without its classifier, images → features (N, h)
    bottleneck: the width b between FC1 and FC2; the paper has 8 for CIFAR, 256 for ImageNet
    features: h; by default found from the extractor
    batch_norm: False leaves the BatchNorm out, as the authors' released code does
    input_size: the extractor sees the images scaled to this height and width; None: as they are
    opening_bias: FC2's initial bias; above 0 every gate starts out rather open
    """

    def __init__(
        self,
        extractor: nn.Module,
        bottleneck: int,
        features: int | None = None,
        *,
        batch_norm: bool = True,
        input_size: int | None = None,
        opening_bias: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in (("bottleneck", bottleneck), ("input_size", input_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        self.extractor = extractor
        self.bottleneck = bottleneck
        self.features = features
        self.batch_norm = batch_norm
        self.input_size = input_size
        self.opening_bias = opening_bias
        self.head: nn.Sequential | None
        self.register_module("head", None)

    def connect(self, gates: int, image_size: tuple[int, int, int]) -> None:
        """Build D for `gates` gates and images (C, H, W); keep it if it is there already.

        Raises ValueError where it was built for another number of gates, or where the extractor
        does not give its declared features.
        """
        if self.head is not None:
            built = self.head[-1].out_features
            if built != gates:
                raise ValueError(f"this gater was connected to {built} gates, not to {gates}")
            return
        if self.features is None:
            self.features = self._measure_features(image_size)
        else:
            self._check_features(self.features, image_size)
        self.head = gate_head(
            self.features,
            self.bottleneck,
            gates,
            batch_norm=self.batch_norm,
            opening_bias=self.opening_bias,
        ).train(self.training)
        if (like := next(self.extractor.parameters(), None)) is not None:
            self.head.to(like.device, like.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Return gate logits (N, G); raises RuntimeError before `connect`."""
        if self.head is None:
            raise RuntimeError("this gater has no gates yet: GaterNet(backbone, gater) connects it")
        return self.head(self.extractor(self.glance(images)))

    def glance(self, images: Tensor) -> Tensor:
        """Return the images as the extractor sees them, scaled to `input_size`."""
        if self.input_size is None or images.shape[-2:] == (self.input_size, self.input_size):
            return images
        size = (self.input_size, self.input_size)
        # In float32 at least: CPUs do not scale half precision.
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        return F.interpolate(wide, size, mode="bilinear", antialias=True).to(images.dtype)

    def _check_features(self, features: int, image_size: tuple[int, int, int]) -> None:
        try:
            shape = _output_shape(self.extractor, self.glance, image_size)
        except Exception:  # whatever an extractor raises that needs real values
            return  # that is what `features` is for
        if shape[1:] != (features,):
            raise ValueError(
                f"the extractor {type(self.extractor).__name__} gives {shape} for two images, not "
                f"features={features} each"
            )

    def _measure_features(self, image_size: tuple[int, int, int]) -> int:
        """Return h, from a run on fake tensors that leaves the extractor as it was."""
        shape = _output_shape(self.extractor, self.glance, image_size)
        if len(shape) != 2:
            raise ValueError(
                f"the extractor {type(self.extractor).__name__} gives {shape} for two images; "
                "a gater needs features (N, h): pool them"
            )
        # timm's head_hidden_size is what leaves the pooling, num_features what enters it.
        declared = getattr(self.extractor, "head_hidden_size", None) or getattr(
            self.extractor, "num_features", shape[1]
        )
        if shape[1] != declared:
            raise ValueError(
                f"the extractor {type(self.extractor).__name__} gives {shape[1]} outputs but has "
                f"{declared} features: leave its classifier out (num_classes=0 in timm), or pass "
                f"features={shape[1]} to use these outputs"
            )
        return shape[1]


def gate_head(
    features: int, bottleneck: int, gates: int, *, batch_norm: bool, opening_bias: float
) -> nn.Sequential:
    """Return D: features (N, h) → logits (N, G).

    Biases start at 0 (FC2's at `opening_bias`) and weights at PyTorch's default, as in the
    authors' code: the first logits are then well within the N(0, 1) noise, so no gate starts out
    decided.
    """
    fc1 = nn.Linear(features, bottleneck)
    fc2 = nn.Linear(bottleneck, gates)
    nn.init.zeros_(fc1.bias)
    nn.init.constant_(fc2.bias, opening_bias)
    layers: list[tuple[str, nn.Module]] = [("fc1", fc1)]
    if batch_norm:
        layers.append(("norm", nn.BatchNorm1d(bottleneck)))
    layers += [("activation", nn.ReLU()), ("fc2", fc2)]
    return nn.Sequential(OrderedDict(layers))


def _output_shape(
    extractor: nn.Module, glance: Callable[[Tensor], Tensor], image_size: tuple[int, int, int]
) -> tuple[int, ...]:
    """Return the shape of the extractor's output for two images."""
    tensors = dict(extractor.named_parameters()) | dict(extractor.named_buffers())
    with FakeTensorMode() as fake, torch.no_grad():
        state: dict[str, Tensor] = {name: fake.from_tensor(t) for name, t in tensors.items()}
        like = next((t for t in state.values() if t.is_floating_point()), torch.empty(0))
        images = torch.empty(2, *image_size, dtype=like.dtype, device=like.device)
        return tuple(functional_call(extractor, state, glance(images)).shape)
