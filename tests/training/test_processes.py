"""Two processes over Gloo train as one process does whose BatchNorm sees half batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from one_of_two import BATCH, ONE_EPOCH, trainer_of
from safetensors.torch import load_file
from torch import Tensor

from gaternet.errors import UserError
from gaternet.right_images import Judged
from gaternet.training.config import Sources
from gaternet.training.evaluation import evaluate
from gaternet.training.phases import Options, train
from gaternet.training.processes import ALONE, Processes
from small_runs import GATED, PLAIN, Silent, few_digits, quiet, with_batches

HERE = Path(__file__).parent


def torchrun(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *list(words),
        ],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        | (environment or {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What either process came to."""
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(str(HERE / "one_of_two.py"), str(out))
    assert done.returncode == 0, done.stderr
    return [load_file(out / f"rank-{rank}.safetensors") for rank in (0, 1)]


def test_global_batches_are_those_of_one_process(ranks: list[dict[str, Tensor]]) -> None:
    batches = list(trainer_of(ONE_EPOCH, ALONE).batches(few_digits(83)))
    assert len(batches) == 83 // BATCH
    for number, batch in enumerate(batches):
        for name, whole in zip(("images", "labels", "keys"), batch, strict=True):
            halves = [rank[f"batch-{number}.{name}"] for rank in ranks]
            assert torch.equal(torch.cat(halves), whole)


def test_gradients_are_those_of_batch_norm_over_half_batches(
    ranks: list[dict[str, Tensor]],
) -> None:
    trainer = trainer_of(ONE_EPOCH, ALONE)
    batch = next(iter(trainer.batches(few_digits(83))))
    for half in zip(*(part.chunk(2) for part in batch), strict=True):
        loss, _, _ = trainer.objective(*half)
        (loss / 2).backward()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        for rank in ranks:
            # Float32 sums in another order.
            found = rank[f"gradient.{name}"]
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)


def test_epoch_equals_one_of_accumulated_half_batches(ranks: list[dict[str, Tensor]]) -> None:
    trainer = trainer_of(with_batches(ONE_EPOCH, BATCH, accumulate=2), ALONE)
    numbers = trainer.train_epoch(few_digits(83), Silent())
    for name, parameter in trainer.model.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(
                rank[f"model.{name}"], parameter.detach(), rtol=1e-3, atol=1e-4
            )
    # Gates in training are means over all images, whichever process saw them.
    for name in ("loss", "error_percent", "open_share"):
        for rank in ranks:
            assert rank[f"numbers.{name}"].item() == pytest.approx(numbers[name], rel=1e-3)


def test_processes_end_with_the_same_network(ranks: list[dict[str, Tensor]]) -> None:
    first, second = ranks
    for name in first:
        if name.startswith(("model.", "numbers.", "evaluation.")):
            assert torch.equal(first[name], second[name]), name


def test_every_image_is_evaluated_once(ranks: list[dict[str, Tensor]]) -> None:
    trainer = trainer_of(ONE_EPOCH, ALONE)
    prefix = "model."
    weights = {n.removeprefix(prefix): t for n, t in ranks[0].items() if n.startswith(prefix)}
    trainer.model.load_state_dict(weights)
    alone = evaluate(trainer.model, few_digits(83), ONE_EPOCH.data, trainer.plan)
    assert alone.gates is not None
    for name in ("images", "loss", "error_percent", "top5_error_percent"):
        found = ranks[0][f"evaluation.{name}"].item()
        assert found == pytest.approx(getattr(alone, name), rel=1e-5), name
    for name in ("always_on", "always_off", "mean_open", "near_threshold"):
        found = ranks[0][f"evaluation.{name}"].item()
        assert found == pytest.approx(getattr(alone.gates, name), rel=1e-5), name
    assert ranks[0]["evaluation.images"].item() == 83
    assert torch.cat([rank["evaluated"] for rank in ranks]).tolist() == list(range(83))


def test_fewer_images_than_processes_are_evaluated_once(ranks: list[dict[str, Tensor]]) -> None:
    trainer = trainer_of(ONE_EPOCH, ALONE)
    prefix = "model."
    weights = {n.removeprefix(prefix): t for n, t in ranks[0].items() if n.startswith(prefix)}
    trainer.model.load_state_dict(weights)
    alone = evaluate(trainer.model, few_digits(1), ONE_EPOCH.data, trainer.plan)
    for rank in ranks:
        assert rank["few.images"].item() == 1
        assert rank["few.loss"].item() == pytest.approx(alone.loss, rel=1e-5)


def test_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    options = Options("cpu", console=quiet(), processes=Processes(0, 3))
    with pytest.raises(UserError, match=r"batch-size 128 cannot be shared by 3 processes"):
        train(with_batches(PLAIN, 128), Sources("digits"), tmp_path / "run", options)
    accumulated = with_batches(GATED, 128, accumulate=64)
    with pytest.raises(UserError, match="in 64 parts each: give a multiple of 192"):
        train(accumulated, Sources("digits"), tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_words = ["-m", "gaternet", "train", "digits/resnet8-gated", "--epochs", "1"]
    train_words.append("--from-scratch")
    done = torchrun(*train_words, "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["processes"] == 2
    judged = Judged(**result["judged"])
    assert judged.error_percent == pytest.approx(result["test_error_percent"], abs=1e-3)
    # One of them wrote and spoke.
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert done.stdout.count("digits/resnet8-gated: test error") == 1
    again = torchrun(*train_words, "--device", "cpu", "--out", str(out))
    assert again.returncode != 0
    assert "holds a run already" in again.stderr
    assert "gaternet/training" not in again.stderr  # the launcher's own traceback is its own
