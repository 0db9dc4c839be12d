"""The processes of one run: those that torchrun started, or this one alone."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from gaternet.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many processes train one model together, and which of them this is."""

    rank: int = 0
    count: int = 1
    patient: dist.ProcessGroup | None = None
    """The same processes with a time-out of a day: the first one may have data to prepare."""

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
        dist.all_gather_object(found, value, group=self.patient)
        return found

    def wait(self) -> None:
        """Go on when every process has come here.

        Raises UserError where another one has ended meanwhile.
        """
        if self.count == 1:
            return
        try:
            dist.barrier(self.patient)
        except RuntimeError:  # of which kind depends on how the connection was lost
            raise UserError("another process of this run has ended; its message says why") from None


ALONE = Processes()


def local_device(name: str) -> str:
    """Return the device of this process: under torchrun `auto` is a GPU for each process."""
    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started: over NCCL on GPUs, over Gloo on CPUs.

    Raises UserError where they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be joined: {error}") from None
    try:
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        assert isinstance(patient, dist.ProcessGroup)  # every process is in it
        yield Processes(dist.get_rank(), dist.get_world_size(), patient)
    finally:
        dist.destroy_process_group()
