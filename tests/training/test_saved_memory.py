"""Bytes saved for the backward, against what can be counted by hand."""

import torch
from torch import nn
from torch.nn import functional as F

from gaternet.training.saved_memory import saved_bytes


def test_a_product_saves_both_factors() -> None:
    first, second = (torch.rand(5, 7, requires_grad=True) for _ in range(2))
    assert saved_bytes(lambda: first * second, []) == 2 * 5 * 7 * 4


def test_storage_counts_once_and_whole() -> None:
    x = torch.rand(4, 6, requires_grad=True)
    # The product saves two columns of x, the squares all of it.
    assert saved_bytes(lambda: (x[:, :1] * x[:, 1:2]).sum() + x.square().sum(), []) == 4 * 6 * 4


def test_parameters_do_not_count() -> None:
    layer = nn.Linear(3, 8)
    images = torch.rand(10, 3)
    # The input of the linear layer, and the output of the ReLU.
    kept = (10 * 3 + 10 * 8) * 4
    assert saved_bytes(lambda: F.relu(layer(images)), layer.parameters()) == kept
    assert saved_bytes(lambda: layer(images.requires_grad_()), []) == (10 * 3 + 8 * 3) * 4


def test_storages_that_come_and_go_are_not_mistaken_for_each_other() -> None:
    weight = torch.ones((), requires_grad=True)

    def forward() -> None:
        for _ in range(5):
            torch.rand(1000) * weight  # its memory is free for the next one

    assert saved_bytes(forward, [weight]) == 5 * 1000 * 4


def test_nothing_is_saved_without_gradients() -> None:
    layer = nn.Linear(3, 8)
    with torch.no_grad():
        assert saved_bytes(lambda: layer(torch.rand(10, 3)), layer.parameters()) == 0
