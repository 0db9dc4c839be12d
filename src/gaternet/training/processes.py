"""The processes of one run: those that torchrun started, or this one alone."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from gaternet.errors import UsageError, UserError

_GLOO = ("gloo", "pair closure", "connection closed by peer", "connection reset by peer")

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others within a step: longer than for its own data, so that
whoever has the fault says it."""


@dataclass(frozen=True)
class Processes:
    """How many processes train one model together, and which of them this is."""

    rank: int = 0
    count: int = 1
    patient: dist.ProcessGroup | None = None
    """The same processes with a time-out of a day: the first one may have data to prepare."""
    prompt: dist.ProcessGroup | None = None
    """The same processes within training, where no GPU is to wait for a number."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of every process's `tensor`, in each of them."""
        if self.count == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def largest(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """Return the largest of every process's `numbers`, each by itself, in each of them.

        Only the processes wait for each other, no GPU does.
        """
        if self.count == 1:
            return numbers
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.prompt)
        return tuple(tensor.tolist())

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place: BatchNorm's running statistics."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def union(self, names: set[str]) -> set[str]:
        """Return the names of all processes together."""
        return set().union(*self.gathered(names))

    def gathered(self, value: Value) -> list[Value]:
        """Return every process's `value`, in each of them, by rank."""
        if self.count == 1:
            return [value]
        found = [value] * self.count
        dist.all_gather_object(found, value, group=self.prompt)
        return found

    def wait(self) -> None:
        """Go on when every process has come here, be it a day later."""
        if self.count == 1:
            return
        dist.barrier(self.patient)


ALONE = Processes()


def local_device(name: str) -> str:
    """Return the device of this process: under torchrun `auto` is a GPU for each process."""
    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started: over NCCL on GPUs, over Gloo on CPUs.

    Raises UserError where they do not find each other, and where one of them is lost later: it has
    ended, or has not answered for `TIMEOUT`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        _join("nccl" if on_gpu else "gloo", device if on_gpu else None)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be joined: {error}") from None
    try:
        patient, prompt = _over_gloo(timedelta(days=1)), _over_gloo(TIMEOUT)
        yield Processes(dist.get_rank(), dist.get_world_size(), patient, prompt)
    except RuntimeError as error:
        if not _tells_of_a_lost_process(error):
            raise
        raise UserError(
            "another process of this run has ended (its message says why) or has not answered for "
            f"{TIMEOUT.total_seconds():.0f} seconds; training goes on from the last checkpoint "
            "with --resume, or by itself under torchrun --max-restarts"
        ) from None
    finally:
        dist.destroy_process_group()


def _join(backend: str, device: torch.device | None) -> None:
    store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
    # torchrun's store outlives a restart: what lost processes have left there must not be read.
    attempt = dist.PrefixStore(f"attempt {_restarts()}", store)
    dist.init_process_group(
        backend, store=attempt, rank=rank, world_size=count, timeout=TIMEOUT, device_id=device
    )


def _over_gloo(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # every process is in it
    return group


def refuse_torchrun(why: str) -> None:
    """Raise UsageError, saying why, where this process is one of several that torchrun started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{why}: run it without torchrun")


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def begun_before(out: Path, processes: Processes) -> bool:
    """Whether torchrun has started these processes again after they had begun a run in `out`.

    They go on with it then. Whoever began it, its settings and images are compared, and going on
    ends where training it anew would.
    """
    again = _restarts() > 0
    # As the first one sees it: in another's eyes it may begin meanwhile.
    return processes.gathered(again and (out / "config.json").exists())[0]


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether it comes from NCCL or Gloo; Gloo's errors are known by their texts alone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(part in text for part in _GLOO)
