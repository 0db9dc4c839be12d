"""One image whose forward, or whose gradient, becomes infinite in one layer of a network."""

from typing import Literal

import torch
from torch import Tensor, nn

from gaternet.data.image_set import ImageSet

Where = Literal["forward", "backward"]


class _Overflow(torch.autograd.Function):
    """The same values, with gradients that are infinite."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def with_poison(images: ImageSet, place: int) -> ImageSet:
    """Make one image all white, which no digit is."""
    images.images[place] = 255
    return images


def poison(model: nn.Module, layer: str, where: Where) -> None:
    """Let the white image, and no other, overflow at the output of a layer of the backbone."""
    backbone = model.get_submodule("backbone")
    white: list[bool] = [False]

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        white[0] = bool((inputs[0].flatten(1).amin(dim=1) == inputs[0].max()).any())

    def spoil(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not white[0] or not torch.is_grad_enabled():
            return output
        return output * float("inf") if where == "forward" else _Overflow.apply(output)

    backbone.register_forward_pre_hook(look)
    backbone.get_submodule(layer).register_forward_hook(spoil)
