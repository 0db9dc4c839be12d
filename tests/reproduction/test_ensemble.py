"""Networks that are averaged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gaternet
from gaternet.errors import UserError
from gaternet.reproduction import ensemble
from gaternet.reproduction.ensemble import Ensemble, measure_ensemble
from gaternet.reproduction.jobs import EnsembleJob, Job
from gaternet.training.config import Sources
from gaternet.training.phases import train
from gaternet.training.run import Run
from small_runs import PLAIN, on_cpu, with_batches


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two networks that were trained on digits, from different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = with_batches(replace(PLAIN, epochs=1), 128)
    return {
        part: train(replace(recipe, seed=seed), Sources("digits"), folder / part, on_cpu())
        for seed, part in enumerate(("backbone", "gater"))
    }


def job_of(runs: dict[str, Run]) -> EnsembleJob:
    parts = {part: Job(run.config.recipe, {}) for part, run in runs.items()}
    return EnsembleJob(replace(PLAIN, name="digits/resnet8-ensemble"), parts)


def test_ensemble_has_the_mean_of_probabilities() -> None:
    networks = [nn.Linear(5, 3) for _ in range(3)]
    x = 4 * torch.randn(7, 5)
    logits = np.stack([network(x).detach().double().numpy() for network in networks])
    powers = np.exp(logits)
    mean = (powers / powers.sum(axis=2, keepdims=True)).mean(axis=0)
    found = Ensemble(networks)(x).exp().detach().double().numpy()
    np.testing.assert_allclose(found, mean, rtol=1e-5)


def test_errors_are_of_both_networks_on_the_test_images(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    measure = ensemble.errors_and_costs

    def watch(*given: Any) -> dict[str, Any]:
        seen.extend(given)
        return measure(*given)

    monkeypatch.setattr(ensemble, "errors_and_costs", watch)
    found = measure_ensemble(job_of(runs), runs, "digits", "cpu")
    model, test, data, _ = seen
    pixels: Tensor = (test.images / 255 - torch.tensor(data.mean)) / torch.tensor(data.std)
    with torch.no_grad():
        alone = [gaternet.load(run.path)(pixels).softmax(dim=1) for run in runs.values()]
        mean = torch.stack(alone).mean(dim=0)
        torch.testing.assert_close(model(pixels).exp(), mean, rtol=1e-4, atol=1e-6)
    errors = [float((each.argmax(dim=1) != test.labels).double().mean()) for each in (*alone, mean)]
    assert len(set(errors)) == 3
    assert found["test_error_percent"] == pytest.approx(100 * errors[-1], abs=1e-3)
    assert found["averaged"] == [job.name for job in job_of(runs).parts.values()]


def test_networks_of_different_images_are_refused(runs: dict[str, Run]) -> None:
    gater = runs["gater"]
    other = Run(gater.path, replace(gater.config, data_fingerprint="another"), writes=False)
    with pytest.raises(UserError, match=r"trained on different images"):
        measure_ensemble(job_of(runs), runs | {"gater": other}, "digits", "cpu")
