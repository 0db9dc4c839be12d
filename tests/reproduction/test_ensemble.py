"""Networks that are averaged."""

import numpy as np
import torch
from torch import nn

from gaternet.reproduction.ensemble import Ensemble


def test_ensemble_has_the_mean_of_probabilities() -> None:
    networks = [nn.Linear(5, 3) for _ in range(3)]
    x = 4 * torch.randn(7, 5)
    logits = np.stack([network(x).detach().double().numpy() for network in networks])
    powers = np.exp(logits)
    mean = (powers / powers.sum(axis=2, keepdims=True)).mean(axis=0)
    found = Ensemble(networks)(x).exp().detach().double().numpy()
    np.testing.assert_allclose(found, mean, rtol=1e-5)
