"""SIGTERM and Ctrl-C: the step is finished and saved, and the run goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from math import inf
from pathlib import Path

import pytest

from gaternet.errors import Interrupted
from gaternet.training.interruption import ECHO_SECONDS, Interruption, Watch
from gaternet.training.loop import Probe, fit
from gaternet.training.processes import Processes
from gaternet.training.starting import build_model
from gaternet.training.trainer import Trainer
from small_runs import PLAIN, Silent, cpu_plan, few_digits, new_run, with_batches

HERE = Path(__file__).parent
WORDS = ["train", "digits/resnet8-gated", "--epochs", "2", "--schedule.batch-size", "400"]


class Told:
    """A training in a process of its own, that is told to end."""

    def __init__(self, out: Path, *words: str, pause: float = 0.3) -> None:
        self.out = out
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "stoppable.py"), str(pause)),
                *(*WORDS, *words, "--device", "cpu", "--out", str(out)),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def await_line(self, word: str, count: int = 1) -> None:
        assert self.process.stdout is not None
        while count:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            count -= line.strip() == word

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_told_process_finishes_its_step_saves_and_says_how_to_go_on(
    number: int, code: int, name: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    told = Told(out, "--from-scratch")
    told.await_line("step", 2)
    told.process.send_signal(number)
    found, err = told.ended()
    assert found == code
    where = f"stopped by {name} after step 2 of epoch 1; go on with: gaternet train "
    assert err.startswith(f"gaternet: {where}")
    assert err.endswith(f"--out {out} --resume\n")
    assert err.count("\n") == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["epoch-0000-step-000002"]
    assert not (out / ".lock").exists()


@pytest.mark.slow
def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", "--from-scratch", pause=60)
    told.await_line("step")
    began = time.monotonic()
    told.process.send_signal(signal.SIGTERM)
    time.sleep(ECHO_SECONDS / 3)
    assert told.process.poll() is None  # it would finish its step
    told.process.send_signal(signal.SIGTERM)
    assert told.ended() == (143, "")
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_told_while_it_pretrains_or_evaluates_it_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = Told(out)
    told.await_line("evaluation")  # of the backbone's first epoch
    told.process.send_signal(signal.SIGTERM)
    code, err = told.ended()
    assert code == 143
    assert "stopped by SIGTERM after epoch 1; go on with: gaternet train" in err
    names = [path.name for path in (out / "backbone" / "checkpoints").iterdir()]
    assert names == ["epoch-0001"]
    again = Told(out, "--resume", pause=0)
    assert again.ended() == (0, "")
    for phase in ("backbone", "gater", "."):
        lines = (out / phase / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    command = json.loads((out / "result.json").read_text())["command"]
    assert "--resume" not in command


@pytest.mark.slow
def test_both_processes_stop_behind_the_same_step(tmp_path: Path) -> None:
    """One of two is told; the launcher then ends with an error, as it does for every failure."""
    out = tmp_path / "run"
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    # More steps in an epoch than pass between two agreements.
    smaller = ["100" if word == "400" else word for word in WORDS]
    words = [*smaller, "--from-scratch", "--device", "cpu", "--out", str(out)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launch, str(HERE / "stoppable.py"), "0.3", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    steps = 0
    while steps < 2:  # one of each: neither begins its second before the other's first is done
        steps += process.stdout.readline().strip() == "step"
        assert process.poll() is None
    holder = json.loads((out / ".lock").read_text())
    os.kill(holder["pid"], signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert err.count("stopped by SIGTERM after step") == 1
    (saved,) = (out / "checkpoints").iterdir()
    progress = json.loads((saved / "progress.json").read_text())
    assert len(progress["within"]["sums"]) == 2
    counts = [row[3] for row in progress["within"]["sums"]]
    assert counts[0] == counts[1] == progress["within"]["images"] / 2


def take_a_step(interruption: Interruption, looks: list[tuple[bool, int]]) -> None:
    with interruption.listening(), interruption.deferred():
        looks.append(Watch(interruption).look())
        os.kill(os.getpid(), signal.SIGINT)
        looks.append(Watch(interruption).look())


def test_signal_waits_while_training_and_ends_what_else_runs() -> None:
    interruption = Interruption()
    before = signal.getsignal(signal.SIGTERM)
    with interruption.listening():
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    looks: list[tuple[bool, int]] = []
    with pytest.raises(Interrupted, match="stopped by Ctrl-C"):
        take_a_step(Interruption(), looks)
    assert looks == [(False, 0), (False, signal.SIGINT)]


def test_echo_of_a_signal_is_none_under_torchrun_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal and the launcher both pass it on."""
    ended: list[int] = []
    monkeypatch.setattr("gaternet.training.interruption._exit_at_once", ended.append)
    for launched, expected in ((True, []), (False, [signal.SIGINT])):
        if launched:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
        else:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        with pytest.raises(Interrupted):
            take_two(Interruption())
        assert ended == expected


def take_two(interruption: Interruption) -> None:
    with interruption.listening(), interruption.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_checkpoint_is_due_when_its_minutes_are_over() -> None:
    assert Watch(minutes=inf).look() == (False, 0)
    watch = Watch(minutes=0.01 / 60)
    time.sleep(0.02)
    assert watch.look() == (True, 0)
    watch.saved()
    assert watch.look() == (False, 0)


class Agreeing(Processes):
    """Two processes of which the other one was told to end."""

    def largest(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        asked.append(numbers)
        return (0, signal.SIGTERM if len(asked) > 1 else 0, 3)


asked: list[tuple[int, ...]] = []


def test_several_processes_agree_now_and_then() -> None:
    watch = Watch(processes=Agreeing(0, 2))
    looks = [watch.look() for _ in range(4)]
    assert len(asked) == 2  # behind the first step, and three steps later
    assert looks == [(False, 0)] * 3 + [(False, signal.SIGTERM)]


@pytest.mark.parametrize("left", [0, 1])
def test_run_that_only_lacks_its_measurement_gets_it(left: int, tmp_path: Path) -> None:
    """However soon the hours of `reproduce` are over, the next call goes on."""
    recipe = with_batches(PLAIN, 12)
    images = few_digits(24)
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    trainer.epoch = recipe.epochs - left
    interruption = Interruption()
    interruption.received = signal.SIGTERM
    probe, run = Probe(images, "training sample"), new_run(tmp_path / "run", recipe, images)
    with pytest.raises(Interrupted) if left else nullcontext():
        fit(trainer, images, probe, run, Silent(), Watch(interruption))
    assert trainer.steps == left
