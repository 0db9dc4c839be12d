"""Scheduled dropout on the gate vector (paper, appendix B)."""

import torch
from torch import Tensor, nn

from gaternet import draws
from gaternet.draws import Salt


def gate_dropout(gates: Tensor, rate: Tensor, uniform: Tensor) -> Tensor:
    """Return `gates` / (1 − rate) where `uniform` ≥ rate, else 0; gates and uniform are (N, G).

    The expected gate is the gate, as in the ScheduledDropPath that the paper refers to (Zoph et
    al., CVPR 2018, whose released code divides so): evaluation, which drops nothing, needs no
    correction.
    """
    return torch.where(uniform < rate, 0.0, gates / (1.0 - rate))


class GateDropout(nn.Module):
    """Gates (N, G) → gates of which a share `rate` is dropped, in training mode only.

    Until `set_rate` is first called nothing is drawn. From then on draws are made whatever the
    rate, so that a compiled step is compiled once for a schedule that begins at 0. The rate is not
    part of the state dict.
    """

    rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scheduled = False
        self.register_buffer("rate", torch.tensor(0.0), persistent=False)

    def set_rate(self, rate: float) -> None:
        """Set the share of gates to drop; raise ValueError unless it is in [0, 1)."""
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate is {rate}; it is a probability below 1")
        self.scheduled = True
        self.rate.fill_(rate)

    def forward(self, gates: Tensor, keys: Tensor | None = None, start: int = 0) -> Tensor:
        """Return the gates that are left; `keys` and `start` as for a binarizer."""
        if not (self.training and self.scheduled):
            return gates
        return gate_dropout(gates, self.rate, draws.uniform(gates, keys, Salt.DROPOUT, start))
