"""Whole phases on the digits: pre-training, joint training, and what they leave behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import gaternet
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.data.digits import load_digits
from gaternet.errors import UsageError, UserError
from gaternet.model import GaterNet
from gaternet.right_images import Judged
from gaternet.training import compute, evaluation, phases, starting
from gaternet.training.config import Compute, Recipe, Sources
from gaternet.training.phases import build_model, train
from gaternet.training.run import Run, open_run
from gaternet.training.trainer import Trainer
from small_runs import GATED, PLAIN, few_digits, on_cpu, quiet, shown, tree, with_batches

ONE = with_batches(replace(PLAIN, epochs=1), 128)
JOINT = with_batches(replace(GATED, epochs=1), 128)
SCRATCH = Sources("digits", from_scratch=True)

RESULT_KEYS = {
    "recipe", "command", "data", "epochs", "pretrain_epochs", "seed", "settings",
    "macs_uncounted", "hardware", "processes", "computed_with", "gate_form",
    "torch", "date", "wall_seconds", "test_error_percent", "test_top5_error_percent",
    "parameters", "macs_per_image", "macs_needed_per_image", "gates", "changes",
    "judged", "training_error_percent",
}  # fmt: skip
GATE_KEYS = {
    "total", "always_on", "always_off", "input_dependent", "mean_open", "near_threshold",
    "needed_macs", "backbone_macs",
}  # fmt: skip


def run_recipe(
    recipe: Recipe,
    out: Path,
    sources: Sources,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Run:
    return train(recipe, sources, out, on_cpu(console), resume=resume)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_recipe(ONE, tmp_path_factory.mktemp("runs") / "plain", Sources("digits"))


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both parts trained first: one epoch of twenty makes one of each part's twenty."""
    return run_recipe(JOINT, tmp_path_factory.mktemp("runs") / "joint", Sources("digits"))


def conv_macs(sizes: tuple[int, int, int], channels: int = 1, side: int = 8) -> int:
    """Multiply-accumulates of ResNet-8's convs on digits, layer by layer."""
    total = channels * sizes[0] * 9 * side**2 + sizes[0] ** 2 * 9 * side**2 * 2
    for before, width in pairwise(sizes):
        side //= 2
        total += (before * width * 9 + width * width * 9 + before * width) * side**2
    return total


CONVS = conv_macs((16, 32, 64))


def test_plain_result(plain: Run) -> None:
    result = plain.result
    assert result is not None
    assert result == json.loads((plain.path / "result.json").read_text())
    assert result.keys() == RESULT_KEYS
    assert result["gates"] is result["pretrain_epochs"] is result["settings"]["gating"] is None
    assert result["macs_uncounted"] == {}
    assert (result["recipe"], result["epochs"], result["seed"]) == ("digits/resnet8", 1, 0)
    train_images = load_digits("train")
    assert result["data"] == {"name": "digits", "fingerprint": train_images.fingerprint}
    assert result["macs_per_image"] == result["macs_needed_per_image"] == CONVS + 640
    model = gaternet.load(plain.path)
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    test = load_digits("test")
    with torch.no_grad():
        top = model((test.images / 255 - 0.3056) / 0.3756).argsort(dim=1, descending=True)
    wrong = (top[:, 0] != test.labels).double().mean()
    assert result["test_error_percent"] == pytest.approx(100 * wrong.item(), abs=1e-3)
    judged = Judged(**result["judged"])
    assert judged.fingerprint == test.fingerprint
    assert judged.bits.tolist() == (top[:, 0] == test.labels).tolist()
    missed = (top[:, :5] != test.labels[:, None]).all(dim=1).double().mean()
    assert result["test_top5_error_percent"] == pytest.approx(100 * missed.item(), abs=1e-3)


def test_joint_result(joint: Run) -> None:
    result = joint.result
    assert result is not None
    assert result.keys() == RESULT_KEYS
    assert result["training_error_percent"] == joint.metrics()[-1]["error_percent"] > 0
    assert result["pretrain_epochs"] == {"backbone": 1, "gater": 1}
    assert result["settings"]["gating"]["sparsity"] == 1.0
    gates = result["gates"]
    assert gates.keys() == GATE_KEYS
    assert gates["total"] == 16 + 32 + 64
    kinds = gates["always_on"] + gates["always_off"] + gates["input_dependent"]
    assert kinds == gates["total"]
    assert result["macs_per_image"] == 2 * CONVS + 640 + 64 * 8 + 8 * 112
    assert result["macs_needed_per_image"] < result["macs_per_image"]
    test = load_digits("test")
    model = gaternet.load(joint.path)
    with torch.no_grad():
        logits, opened = model((test.images / 255 - 0.3056) / 0.3756)
    wrong = (logits.argmax(dim=1) != test.labels).double().mean()
    assert result["test_error_percent"] == pytest.approx(100 * wrong.item(), abs=1e-3)
    assert gates["always_off"] == int((opened.sum(dim=0) == 0).sum())
    assert gates["mean_open"] == pytest.approx(opened.sum(dim=1).mean().item())


def test_parts_are_runs_of_their_own_with_seeds_of_their_own(joint: Run) -> None:
    backbone, gater = (open_run(joint.path / part) for part in ("backbone", "gater"))
    assert backbone.config.recipe.name == gater.config.recipe.name == "digits/resnet8"
    assert backbone.config.recipe.epochs == 1
    assert (backbone.config.recipe.seed, gater.config.recipe.seed) == (2000, 1000)
    assert joint.config.weights == {
        "backbone": "pre-trained by this run",
        "gater": "pre-trained by this run",
    }


def test_shorter_joint_phase_has_shorter_pretraining(tmp_path: Path) -> None:
    recipe = replace(JOINT, epochs=2, validation=200)
    run = run_recipe(recipe, tmp_path / "run", Sources("digits"))
    part = open_run(run.path / "backbone")
    assert (part.config.recipe.epochs, part.config.recipe.validation) == (2, 200)
    assert {line["probe"]["images_from"] for line in run.metrics()} == {"validation"}
    assert {line["probe"]["hard"]["images"] for line in run.metrics()} == {200}


def test_metrics_of_every_epoch(joint: Run, plain: Run) -> None:
    (line,) = joint.metrics()
    assert line["epoch"] == 1
    assert {"loss", "error_percent", "open_share", "images_per_second", "lr"} < line.keys()
    probe = line["probe"]
    assert probe["images_from"] == "training sample"
    for form in ("hard", "soft", "noisy"):
        assert probe[form]["images"] == 1297 // 5
        assert 0 <= probe[form]["gates"]["near_threshold"] <= 1
    (line,) = plain.metrics()
    assert "open_share" not in line
    assert line["probe"].keys() == {"images_from", "form", "hard"}
    assert list((plain.path / "tensorboard").iterdir())


def test_test_images_are_read_once_and_only_for_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    judge = evaluation.judge

    def watch(model: Any, images: Any, *arguments: Any) -> Any:
        measured.append(len(images))
        return judge(model, images, *arguments)

    monkeypatch.setattr("gaternet.training.evaluation.judge", watch)  # what `evaluate` calls
    monkeypatch.setattr("gaternet.training.result.judge", watch)
    run_recipe(replace(JOINT, epochs=2), tmp_path / "run", SCRATCH)
    assert measured == [259] * 6 + [500]


def test_given_parts_are_loaded(
    plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[GaterNet] = []
    monkeypatch.setattr(phases, "fit", lambda trainer, *_: begun.append(trainer.model))
    monkeypatch.setattr(phases, "measure", lambda *_: {"test_error_percent": 0.0})
    weights = gaternet.load(plain.path).state_dict()
    run_recipe(JOINT, tmp_path / "run", Sources("digits", plain.path, plain.path))
    (model,) = begun
    assert all(torch.equal(t, weights[n]) for n, t in model.backbone.state_dict().items())
    extractor = model.gater.extractor.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in extractor.items())
    assert weights.keys() - extractor.keys() == {"fc.weight", "fc.bias"}


def test_result_says_how_long_given_parts_were_trained(plain: Run, tmp_path: Path) -> None:
    run = run_recipe(JOINT, tmp_path / "run", Sources("digits", plain.path, plain.path))
    assert run.result is not None
    assert run.result["pretrain_epochs"] == {"backbone": 1, "gater": 1}
    assert not (run.path / "backbone").exists()
    assert run.config.weights["gater"] == str(plain.path)


def test_one_given_part_leaves_the_other_to_be_trained(plain: Run, tmp_path: Path) -> None:
    run = run_recipe(JOINT, tmp_path / "run", Sources("digits", backbone=plain.path))
    assert (run.path / "gater" / "result.json").exists()
    assert not (run.path / "backbone").exists()


def test_from_scratch_trains_no_parts(tmp_path: Path) -> None:
    run = run_recipe(JOINT, tmp_path / "run", SCRATCH)
    assert run.result is not None
    assert run.result["pretrain_epochs"] is None
    assert not (run.path / "backbone").exists()
    assert run.config.weights == {"backbone": "fresh", "gater": "fresh"}


def test_contradictory_sources_are_refused(plain: Run, tmp_path: Path) -> None:
    sources = Sources("digits", gater=plain.path, from_scratch=True)
    with pytest.raises(UsageError, match="--from-scratch and --gater contradict each other"):
        run_recipe(JOINT, tmp_path / "run", sources)
    with pytest.raises(UsageError, match="--from-scratch and --pretrained contradict each other"):
        run_recipe(JOINT, tmp_path / "run", Sources("digits", pretrained=True, from_scratch=True))
    both = Sources("digits", plain.path, plain.path, pretrained=True)
    with pytest.raises(UsageError, match="--pretrained has no effect"):
        run_recipe(JOINT, tmp_path / "run", both)
    with pytest.raises(
        UsageError, match="digits/resnet8 has no gater to start from: leave --gater"
    ):
        run_recipe(ONE, tmp_path / "run", Sources("digits", gater=plain.path))
    assert not (tmp_path / "run").exists()


def saved_resnet14(folder: Path, _: Run) -> Path:
    data = PLAIN.data
    recipe = replace(ONE, backbone="resnet14")
    assert isinstance(build_model(recipe), CifarResNet)
    return run_recipe(recipe, folder / "deeper", Sources(data.name)).path


def gated_run(folder: Path, joint: Run) -> Path:
    return joint.path


@pytest.mark.parametrize("part", ["backbone", "gater"])
@pytest.mark.parametrize(
    ("make", "message"),
    [(saved_resnet14, "holds a resnet14, not a plain resnet8"), (gated_run, "holds a gated")],
)
def test_weights_of_another_network_are_refused(
    part: str, make: Callable[[Path, Run], Path], message: str, joint: Run, tmp_path: Path
) -> None:
    # Every weight of a ResNet-8 has its namesake of the same shape in a ResNet-14.
    path = make(tmp_path, joint)
    given = {"backbone": (path, None), "gater": (None, path)}
    sources = Sources("digits", *given[part])
    with pytest.raises(UserError, match=f"--{part} .*{message}"):
        run_recipe(JOINT, tmp_path / "run", sources)
    assert not (tmp_path / "run").exists()


def test_backbone_for_other_classes_is_refused(tmp_path: Path) -> None:
    run = run_recipe(ONE, tmp_path / "ten", Sources("digits"))
    model = GaterNet.__new__(GaterNet)  # only its parts are looked at
    torch.nn.Module.__init__(model)
    model.backbone = CifarResNet(8, classes=7, channels=1, image_size=8)
    with pytest.raises(UserError, match=r"trained on images of 10 classes, the data has 7"):
        starting.load_part(model, "backbone", run.path)


def test_interrupted_pretraining_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(JOINT, epochs=2)
    real, done = Trainer.train_epoch, 0

    def train_epoch(self: Trainer, *arguments: Any) -> dict[str, float]:
        nonlocal done
        if done == 3:  # the backbone's two epochs and one of the gater's
            raise KeyboardInterrupt
        done += 1
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", train_epoch)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run", Sources("digits"))
    backbone = tree(tmp_path / "run" / "backbone")
    assert len(open_run(tmp_path / "run" / "gater").metrics()) == 1
    console = quiet()
    run = run_recipe(recipe, tmp_path / "run", Sources("digits"), resume=True, console=console)
    assert "digits/resnet8: trained before, in" in shown(console)
    assert tree(run.path / "backbone") == backbone
    assert [line["epoch"] for line in open_run(run.path / "gater").metrics()] == [1, 2]
    undisturbed = run_recipe(recipe, tmp_path / "other", Sources("digits"))
    for name in ("", "gater"):
        file = Path(name) / "checkpoints" / "epoch-0002" / "model.safetensors"
        assert (run.path / file).read_bytes() == (undisturbed.path / file).read_bytes()


def stopped_run(out: Path, recipe: Recipe, sources: Sources) -> Run:
    with pytest.MonkeyPatch.context() as patch:

        def stop(self: Trainer, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise KeyboardInterrupt

        patch.setattr(Trainer, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, sources)
    return open_run(out)


def test_resuming_with_other_flags_names_them(tmp_path: Path, plain: Run) -> None:
    run = stopped_run(tmp_path / "run", JOINT, SCRATCH)
    before = tree(run.path)
    assert JOINT.gating is not None
    others: list[tuple[Recipe, Sources, str]] = [
        (replace(JOINT, epochs=2, seed=7), SCRATCH, r"epochs 1 → 2; seed 0 → 7\)"),
        (
            replace(JOINT, gating=replace(JOINT.gating, sparsity=0.25)),
            SCRATCH,
            r"\(gating\.sparsity 1\.0 → 0\.25\)",
        ),
        (JOINT, Sources("digits"), r"weights\.backbone fresh → pre-trained by this run"),
        (JOINT, Sources("digits", plain.path, plain.path), r"weights\.gater fresh → .*plain"),
        (ONE, Sources("digits"), r"name digits/resnet8-gated → digits/resnet8"),
    ]
    for recipe, sources, message in others:
        with pytest.raises(UserError, match=f"begun with other settings.*{message}"):
            run_recipe(recipe, run.path, sources, resume=True)
    assert tree(run.path) == before


def test_resuming_with_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(tmp_path / "run", ONE, Sources("digits"))
    monkeypatch.setattr(phases, "load", lambda where, data, split, *more: few_digits(1000, "train"))
    with pytest.raises(UserError, match=r"\(images \w{16} → \w{16}\).*--allow-change images"):
        run_recipe(ONE, run.path, Sources("digits"), resume=True)


def test_finished_run_is_not_resumed(plain: Run) -> None:
    before = tree(plain.path)
    with pytest.raises(UserError, match=r"plain has ended already; .*result\.json"):
        run_recipe(ONE, plain.path, Sources("digits"), resume=True)
    assert tree(plain.path) == before


def test_too_few_images_for_one_batch(tmp_path: Path) -> None:
    recipe = replace(ONE, validation=1200)
    with pytest.raises(
        UserError, match=r"too few for --validation 1200 and --schedule\.batch-size"
    ):
        run_recipe(recipe, tmp_path / "run", Sources("digits"))
    assert not (tmp_path / "run").exists()


def test_unknown_gater_is_refused_before_data_is_read(tmp_path: Path) -> None:
    assert JOINT.gating is not None
    recipe = replace(JOINT, gating=replace(JOINT.gating, gater="resnet21"))
    with pytest.raises(
        UserError, match=r"unknown network 'resnet21' \(.*\); did you mean resnet20"
    ):
        run_recipe(recipe, tmp_path / "run", Sources("/no/such/data"))


def test_missing_compiler_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.shutil, "which", lambda name: None)
    console = quiet()
    recipe = replace(JOINT, compute=Compute(precision="float32", compile="on"))
    run = run_recipe(recipe, tmp_path / "run", Sources("digits"), console=console)
    assert run.result is not None
    assert shown(console).count("no C++ compiler with Python's headers: running without") == 1


@pytest.mark.slow
def test_compiled_training_equals_eager(tmp_path: Path) -> None:
    runs = [
        run_recipe(
            replace(JOINT, compute=Compute("float32", wish, False)), tmp_path / wish, SCRATCH
        )
        for wish in ("off", "on")
    ]
    losses = [run.metrics()[0]["loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_unfinished_part_is_refused(tmp_path: Path) -> None:
    begun = stopped_run(tmp_path / "begun", ONE, Sources("digits"))
    with pytest.raises(UserError, match=r"--gater .*begun has not finished training: go on"):
        run_recipe(JOINT, tmp_path / "run", Sources("digits", gater=begun.path))
    assert not (tmp_path / "run").exists()


def test_part_that_saw_the_validation_images_is_refused(plain: Run, tmp_path: Path) -> None:
    recipe = replace(JOINT, validation=100)
    with pytest.raises(UserError, match="trained on images that --validation 100 holds out"):
        run_recipe(recipe, tmp_path / "run", Sources("digits", plain.path, plain.path))


def test_part_that_may_have_seen_the_validation_images_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are held out follows from the order of the images, by which data sets differ."""
    held = replace(ONE, validation=100)
    before = run_recipe(held, tmp_path / "before", Sources("digits"))
    console = quiet()
    again = run_recipe(held, tmp_path / "same", Sources("digits", before.path), console=console)
    assert "trained on other images" not in shown(console)
    assert again.result is not None
    digits = load_digits("train")
    turned = digits.take(torch.arange(len(digits)).flip(0))
    monkeypatch.setattr(phases, "load", lambda *_: turned)
    run_recipe(held, tmp_path / "other", Sources("digits", before.path), console=console)
    assert f"note: --backbone {before.path} was trained on other images, or on" in shown(console)


def test_epochs_of_all_phases_of_a_part_are_counted(plain: Run, tmp_path: Path) -> None:
    further = run_recipe(ONE, tmp_path / "further", Sources("digits", plain.path))
    sources = Sources("digits", further.path, plain.path)
    result = run_recipe(JOINT, tmp_path / "joint", sources).result
    assert result is not None
    assert result["pretrain_epochs"] == {"backbone": 2, "gater": 1}


def test_seed_does_not_change_what_is_held_out() -> None:
    images = load_digits("train")
    splits = [
        phases.split_probe(replace(ONE, validation=100, seed=seed), images) for seed in (0, 1000)
    ]
    (kept, probe), (kept_too, probe_too) = splits
    assert probe.images.fingerprint == probe_too.images.fingerprint
    assert kept.fingerprint == kept_too.fingerprint != images.fingerprint


def test_synchronised_batch_norm_keeps_what_is_fused_with_it() -> None:
    """timm's BatchNormAct2d is BatchNorm and ReLU in one module."""
    plain = replace(ONE, backbone="timm/resnetv2_18")
    assert any(type(m).__name__ == "BatchNormAct2d" for m in build_model(plain).modules())
    shared = replace(plain, compute=replace(plain.compute, sync_batch_norm=True))
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        outputs = [build_model(recipe).eval()(images) for recipe in (plain, shared)]
    torch.testing.assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("gater", ["resnet8", None])
def test_synchronised_batch_norm_reaches_what_decides_on_the_gates(gater: str | None) -> None:
    assert JOINT.gating is not None
    decides: dict[str, Any] = {"gater": gater} if gater else {"gater": None, "decides": "layers"}
    recipe = replace(JOINT, gating=replace(JOINT.gating, batch_norm=True, **decides))
    recipe = replace(recipe, compute=replace(recipe.compute, sync_batch_norm=True))
    names = {type(module).__name__ for module in build_model(recipe).modules()}
    assert {name for name in names if "BatchNorm" in name} == {"SyncBatchNorm"}


def test_parts_are_pretrained_as_the_networks_that_the_joint_phase_has() -> None:
    assert JOINT.gating is not None
    joint = replace(JOINT, backbone="resnet14", gating=replace(JOINT.gating, gater="resnet20"))
    joint = replace(joint, schedule=replace(joint.schedule, batch_size=16))
    backbone, gater = (phases.pretraining(part, joint) for part in ("backbone", "gater"))
    assert (backbone.backbone, gater.backbone) == ("resnet14", "resnet20")
    assert backbone.schedule.batch_size == gater.schedule.batch_size == 16
    assert backbone.gating is gater.gating is None


def test_what_cannot_be_had_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    assert JOINT.gating is not None
    recipe = replace(JOINT, gating=replace(JOINT.gating, budget=0.01, sparsity=0.0))
    with pytest.raises(UserError, match=r"--gating\.budget 0\.01 cannot be reached"):
        train(recipe, Sources("digits"), tmp_path / "run", on_cpu())
    assert not (tmp_path / "run").exists()
