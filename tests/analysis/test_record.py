"""Recorded gates against the gates themselves, one at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gaternet.analysis import GateRecord, LayerUse, collect
from gaternet.local import LocalGaterNet
from gaternet.model import GaterNet
from gaternet.rivals import SoftGates
from small_runs import few_digits, tiny_backbone, tiny_gated


@pytest.fixture
def model() -> GaterNet:
    torch.manual_seed(0)
    return tiny_gated().eval()


@pytest.fixture
def images() -> Tensor:
    return few_digits(50).images / 255 - 0.3


def test_record_holds_every_gate_of_every_image(model: GaterNet, images: Tensor) -> None:
    record = collect(model, images.split(16))
    with torch.no_grad():
        expected = torch.cat([model(image[None]).gates for image in images]).numpy()
    assert len(record) == 50
    assert record.gate_count == 20
    assert record.bits.shape == (50, 3)  # 20 bits are three bytes
    assert np.array_equal(record.gates(), expected)
    assert np.array_equal(record.gates(7, 9), expected[7:9])
    assert record.open_counts().tolist() == expected.sum(axis=0).tolist()


def test_layers_are_counted_gate_by_gate(model: GaterNet, images: Tensor) -> None:
    record = collect(model, [images])
    gates = record.gates()
    start, expected = 0, []
    for name, width in (
        ("stage1.block1.bn2", 4),
        ("stage2.block1.bn2", 8),
        ("stage3.block1.bn2", 8),
    ):
        on = off = 0
        for gate in range(start, start + width):
            on += all(row[gate] == 1 for row in gates)
            off += all(row[gate] == 0 for row in gates)
        expected.append(LayerUse(name, width, on, off))
        start += width
    assert list(record.layers()) == expected
    assert sum(layer.input_dependent for layer in expected) > 0
    for layer in expected:
        assert layer.input_dependent == layer.total - layer.always_on - layer.always_off


def test_many_rows_are_counted_in_parts() -> None:
    gates = np.random.default_rng(0).integers(0, 2, (2500, 11), dtype=np.uint8)
    gates[:, 3], gates[:, 7] = 1, 0
    record = GateRecord(np.packbits(gates, axis=1), {"a": slice(0, 5), "b": slice(5, 11)})
    assert record.open_counts().tolist() == gates.sum(axis=0, dtype=np.int64).tolist()
    assert record.layers() == (LayerUse("a", 5, 1, 0), LayerUse("b", 6, 0, 1))


def test_only_the_gater_runs_and_the_model_is_left_as_it_was(
    model: GaterNet, images: Tensor
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran")

    model.backbone.register_forward_pre_hook(refuse)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect(model, [images])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_threshold_is_the_model_s(model: GaterNet, images: Tensor) -> None:
    model.binarizer.threshold = -100.0
    assert collect(model, [images]).gates().all()


def test_local_gates_are_recorded(images: Tensor) -> None:
    torch.manual_seed(0)
    model = LocalGaterNet(tiny_backbone(), granularity="branches").eval()
    record = collect(model, images.split(16))
    with torch.no_grad():
        assert np.array_equal(record.gates(), model(images).gates.numpy())
    assert [layer.total for layer in record.layers()] == [1, 1, 1]


def test_a_soft_gate_is_off_where_it_is_exactly_zero(model: GaterNet, images: Tensor) -> None:
    model.binarizer = SoftGates()
    with torch.no_grad():
        model.gater.get_parameter("head.fc2.weight").mul_(20)
        gates = model.eval()(images).gates
    assert ((gates > 0) & (gates < 0.5)).any()
    assert np.array_equal(collect(model, [images]).gates(), (gates > 0).numpy())


def test_what_is_no_batch_of_images_is_said(model: GaterNet, images: Tensor) -> None:
    pairs: Any = [(images, torch.zeros(50))]
    with pytest.raises(TypeError, match=r"images alone, .* not tuples: \(images for images, _ in"):
        collect(model, pairs)
    with pytest.raises(ValueError, match="no images"):
        collect(model, [])


def test_a_plain_network_has_a_record_without_gates() -> None:
    record = GateRecord(np.zeros((3, 0), np.uint8), {})
    assert record.open_counts().tolist() == record.dependent().tolist() == []
    assert record.layers() == ()
