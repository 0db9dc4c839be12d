"""Plans: what is decided on a record, files of them, and what does not belong together."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gaternet import Gater, GaterNet, UserError, compress, load, save, verify
from gaternet.analysis import GateRecord, collect
from gaternet.backbones import BackboneConfig, create
from gaternet.compression import (
    CompressedBackbone,
    apply,
    backbone_of,
    one_mask,
    plan,
    read_plan,
    write_plan,
)
from gaternet.compression.report import Masked, compare_unseen, verify_batches
from gaternet.local import LocalGaterNet
from gaternet.rivals import RandomGates, make_binarizer
from small_runs import few_digits, tiny_backbone, tiny_gated


@pytest.fixture
def model() -> GaterNet:
    torch.manual_seed(0)
    model = tiny_gated().eval()
    with torch.no_grad():  # some gates lean to one side, none is certain
        model.gater.get_parameter("head.fc2.bias").copy_(torch.linspace(-1, 1, 20))
        model.gater.get_parameter("head.fc2.weight").mul_(3)
    return model


def images(count: int = 60) -> torch.Tensor:
    return few_digits(count).images / 255 - 0.3


def record_of(counts: list[int], of: int, model: GaterNet) -> GateRecord:
    gates = np.arange(of)[:, None] < np.array(counts)
    return GateRecord(np.packbits(gates, axis=1), model.slices)


def test_what_goes_is_counted_gate_by_gate(model: GaterNet) -> None:
    counts = [0, 10, 1, 2] + [10] * 4 + [5] * 4 + [0] * 8
    record = record_of(counts, 10, model)
    first, second, third = plan(model, record).points
    assert (first.removed, first.always_on, first.kept) == ((0,), (1,), 2)
    assert (second.removed, second.always_on, second.kept) == ((), (0, 1, 2, 3), 4)
    assert (third.removed, third.always_on, third.kept) == (tuple(range(8)), (), 0)
    made = plan(model, record, tolerance=2, split="validation")
    assert made.points[0].removed == (0, 2)  # open for 2 images is not fewer than 2
    assert (made.images, made.tolerance, made.split) == (10, 2, "validation")
    assert made.gates("removed") == (0, 2, *range(12, 20))
    assert made.gates("always_on") == (1, 4, 5, 6, 7)


def test_one_mask_has_what_is_open_for_more_than_half(model: GaterNet) -> None:
    counts = [5, 6, 0, 10] + [4] * 4 + [6, 6, 5, 10] + [7] * 8
    made = plan(model, record_of(counts, 10, model), one_mask=True)
    assert made.one_mask
    assert made.gates("removed") == (0, 2, 4, 5, 6, 7, 10)
    assert len(made.gates("always_on")) == 13
    mask = torch.ones(20)
    mask[list(made.gates("removed"))] = 0
    small = one_mask(model, made)
    expected = model(images(), gates=mask.expand(60, -1)).logits
    torch.testing.assert_close(small(images()), expected, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in model.backbone.parameters()
    )
    assert verify_batches(model, small, images().split(25)).agrees(1e-4)
    found = compare_unseen(model, small, [(images(), few_digits(60).labels)])
    assert found.images == 60
    assert found.correct == int((expected.argmax(1) == few_digits(60).labels).sum())


def test_one_mask_is_a_plain_network_on_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    extractor = create(BackboneConfig("resnet8", 0, image_size=8))
    backbone = create(BackboneConfig("densenet-bc-16-4", 5, image_size=8))
    named = GaterNet(backbone, Gater(extractor, bottleneck=4)).eval()
    record = collect(named, [torch.rand(20, 3, 8, 8)])
    small = one_mask(named, plan(named, record, one_mask=True))
    save(small, tmp_path / "small")
    loaded = load(tmp_path / "small")
    assert isinstance(loaded, CompressedBackbone)
    given = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(given), small(given))


def test_plans_with_and_without_gates_are_told_apart(model: GaterNet) -> None:
    record = collect(model, [images()])
    with pytest.raises(UserError, match="leaves no gate"):
        apply(model, plan(model, record, one_mask=True))
    with pytest.raises(UserError, match="leaves gates"):
        one_mask(model, plan(model, record))
    model.binarizer = make_binarizer("soft")
    with pytest.raises(UserError, match="soft gates scale"):
        plan(model, record, one_mask=True)


def test_recorded_images_are_answered_as_before(model: GaterNet) -> None:
    record = collect(model, [images()])
    small = compress(model, record)
    assert 0 < small.gate_count < model.gate_count
    found = verify_batches(model, small, images().split(25))
    assert found.agrees(1e-5)
    assert found.gates == 60 * small.gate_count
    with torch.no_grad():
        assert torch.allclose(small(images()).logits, model(images()).logits, atol=1e-5)


def test_a_changed_weight_is_noticed(model: GaterNet) -> None:
    small = compress(model, collect(model, [images()]))
    with torch.no_grad():
        small.backbone.get_parameter("network.fc.weight")[0, 0] += 1
    assert not verify(Masked(model, small), small, images()).agrees(1e-5)


def test_unseen_images_are_counted_one_by_one(model: GaterNet) -> None:
    small = compress(model, record_of([10] * 5 + [5] * 10 + [0] * 5, 10, model))
    made = backbone_of(small).plan
    labels = few_digits(60).labels
    found = compare_unseen(
        model, small, [(images()[:25], labels[:25]), (images()[25:], labels[25:])]
    )
    same = removed = closed = right = right_before = 0
    with torch.no_grad():
        for image, label in zip(images(), labels.tolist(), strict=True):
            before, after = model(image[None]), small(image[None])
            classes = before.logits.argmax().item(), after.logits.argmax().item()
            same += classes[0] == classes[1]
            right_before += classes[0] == label
            right += classes[1] == label
            removed += any(before.gates[0, gate] == 1 for gate in made.gates("removed"))
            closed += any(before.gates[0, gate] == 0 for gate in made.gates("always_on"))
    assert (found.images, found.same_class) == (60, same)
    assert (found.wanted_removed, found.wanted_closed) == (removed, closed)
    assert (found.correct, found.correct_before) == (right, right_before)
    assert removed
    assert closed


def test_saved_and_loaded_it_is_the_same(model: GaterNet, tmp_path: Path) -> None:
    small = compress(model, collect(model, [images()]))
    # The tiny backbone's widths are not in its name.
    with pytest.raises(UserError, match="built by name differs"):
        save(small, tmp_path / "tiny")
    torch.manual_seed(0)
    extractor = create(BackboneConfig("resnet8", 0, image_size=8))
    backbone = create(BackboneConfig("densenet-bc-16-4", 5, image_size=8))
    named = GaterNet(backbone, Gater(extractor, bottleneck=4)).eval()
    small = compress(named, collect(named, [torch.rand(20, 3, 8, 8)]), tolerance=4)
    for number, saved in enumerate((small, copy.deepcopy(small))):
        save(saved, tmp_path / str(number))
        loaded = load(tmp_path / str(number))
        assert isinstance(loaded, GaterNet)
        given = torch.rand(5, 3, 8, 8)
        with torch.no_grad():
            found, expected = loaded(given), small(given)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.gates, expected.gates)
        assert loaded.points == small.points
        assert backbone_of(loaded).plan == backbone_of(small).plan


def test_plans_are_files(model: GaterNet, tmp_path: Path) -> None:
    made = plan(model, collect(model, [images()]), split="train")
    file = tmp_path / "plan.json"
    write_plan(made, file)
    assert read_plan(file) == made
    values = json.loads(file.read_text())
    assert values["points"][0]["name"] == "stage1.block1.bn2"
    small = apply(model, read_plan(file))
    assert small.gate_count == sum(point["kept"] for point in values["points"])
    file.write_text(json.dumps(values | {"images": "many"}))
    with pytest.raises(UserError, match=r"plan\.json is not a plan: images: .*integer"):
        read_plan(file)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot write"):
        write_plan(made, tmp_path / "no" / "plan.json")


def test_a_plan_is_one_model_s(model: GaterNet) -> None:
    made = plan(model, collect(model, [images()]))
    model.binarizer.threshold = 0.5
    with pytest.raises(UserError, match=f"weights {made.model[:12]}…, the model has "):
        apply(model, made)
    model.binarizer.threshold = 0.0
    apply(model, made)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(UserError, match="of another checkpoint"):
        apply(model, made)
    with pytest.raises(
        UserError, match=r"plan is for 12 gates at 2 points .* the model has 20 at 3"
    ):
        apply(model, replace(made, points=made.points[:2]))


def test_a_record_is_one_model_s(model: GaterNet) -> None:
    record = collect(model, [images()])
    other = GateRecord(record.bits, {"elsewhere": slice(0, 20)})
    with pytest.raises(
        UserError, match=r"holds 20 gates at 1 points \(elsewhere .* 20 at 3 points"
    ):
        compress(model, other)
    small = compress(model, record)
    with pytest.raises(UserError, match="compressed already"):
        compress(small, collect(small, [images()]))


def test_what_makes_no_sense_is_refused(model: GaterNet) -> None:
    record = collect(model, [images()])
    for tolerance in (-1, 60):
        with pytest.raises(UserError, match=f"tolerance {tolerance}: .* less than the 60"):
            compress(model, record, tolerance)
    with pytest.raises(UserError, match="none of 20 gates depends on the image over 10 images"):
        compress(model, record_of([0] * 10 + [10] * 10, 10, model))
    model.binarizer = RandomGates(0.5)
    with pytest.raises(UserError, match="random gates"):
        compress(model, record)
    local = LocalGaterNet(tiny_backbone())
    with pytest.raises(UserError, match="not a LocalGaterNet"):
        compress(local, record)  # type: ignore[arg-type]


def test_a_backbone_without_a_name_is_not_saved(model: GaterNet, tmp_path: Path) -> None:
    small = compress(model, collect(model, [images()]))
    backbone_of(small).config = None
    with pytest.raises(UserError, match="cannot be built again by name"):
        save(small, tmp_path / "small")
