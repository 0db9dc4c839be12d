"""What one of two processes does in `test_processes.py`; torchrun starts it with a directory."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from gaternet import Gater, GaterNet
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.data.batches import evaluation_batches
from gaternet.training.compute import choose_device, plan
from gaternet.training.config import Recipe
from gaternet.training.evaluation import evaluate
from gaternet.training.processes import Processes, joined
from gaternet.training.trainer import Trainer
from small_runs import GATED, Silent, few_digits, with_batches

BATCH = 16
ONE_EPOCH = with_batches(replace(GATED, epochs=1), BATCH, warmup=0.0)


def gated_network() -> GaterNet:
    """Gates near their threshold, so that noise and statistics decide many of them."""
    torch.manual_seed(3)
    extractor = CifarResNet(8, classes=0, widths=(4, 4, 4), channels=1, image_size=8)
    backbone = CifarResNet(8, widths=(4, 8, 8), channels=1, image_size=8)
    return GaterNet(backbone, Gater(extractor, bottleneck=4))


def trainer_of(recipe: Recipe, processes: Processes) -> Trainer:
    trainer = Trainer(
        gated_network(), recipe, plan(recipe.compute, choose_device("cpu"), processes)
    )
    trainer.set_stage(0.5)
    trainer.model.train()
    return trainer


def main(out: Path) -> None:
    """Take one step, train one epoch, evaluate; write what each process came to."""
    torch.set_num_threads(1)
    images = few_digits(83)
    with joined(choose_device("cpu")) as processes:
        trainer = trainer_of(ONE_EPOCH, processes)
        found = {}
        batches = list(trainer.batches(images))
        for number, batch in enumerate(batches):
            for name, tensor in zip(("images", "labels", "keys"), batch, strict=True):
                found[f"batch-{number}.{name}"] = tensor
        loss, _, _ = trainer.objective(*batches[0])
        loss.backward()
        for name, parameter in trainer.model.named_parameters():
            assert parameter.grad is not None
            found[f"gradient.{name}"] = parameter.grad.clone()
        trainer.optimizer.zero_grad()
        numbers = trainer.train_epoch(images, Silent())
        for name in ("loss", "error_percent", "open_share"):
            found[f"numbers.{name}"] = torch.tensor(numbers[name], dtype=torch.float64)
        for name, tensor in trainer.model.state_dict().items():
            found[f"model.{name}"] = tensor
        measured = evaluate(trainer.model, images, ONE_EPOCH.data, trainer.plan)
        assert measured.gates is not None
        for name in ("images", "loss", "error_percent", "top5_error_percent"):
            found[f"evaluation.{name}"] = torch.tensor(getattr(measured, name), dtype=torch.float64)
        for name in ("always_on", "always_off", "mean_open", "near_threshold"):
            found[f"evaluation.{name}"] = torch.tensor(
                getattr(measured.gates, name), dtype=torch.float64
            )
        seen = evaluation_batches(images, ONE_EPOCH.data, 10, trainer.plan.loading)
        found["evaluated"] = torch.cat([index for index, *_ in seen])
        few = evaluate(trainer.model, few_digits(1), ONE_EPOCH.data, trainer.plan)
        found["few.images"], found["few.loss"] = torch.tensor(few.images), torch.tensor(few.loss)
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in found.items()},
            out / f"rank-{processes.rank}.safetensors",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
