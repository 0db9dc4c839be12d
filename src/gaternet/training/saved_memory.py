"""How much memory a forward keeps for its backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors that `forward` saves for its backward.

    A storage counts once and whole, however many tensors look into it; those of `parameters` are
    there anyway and do not count.
    """
    sizes = {_address(parameter): 0 for parameter in parameters}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in sizes:
            sizes[_address(tensor)] = tensor.untyped_storage().nbytes()
            # While it is kept, no other storage has its address.
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
