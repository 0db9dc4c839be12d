"""Means over an epoch, whole also where a run was interrupted or other processes have parts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gaternet.training.compute import ComputePlan
from gaternet.training.processes import Processes
from gaternet.training.saved_state import Sums


@dataclass
class EpochSums:
    """Sums over an epoch's samples, kept on the device: loss, wrong predictions, share open."""

    sums: Tensor  # (3,) float64
    count: int = 0

    def add(self, loss: Tensor, wrong: Tensor, opened: Tensor, count: int) -> None:
        self.sums += torch.stack((loss.detach() * count, wrong, opened))
        self.count += count

    def read(self, gated: bool, seconds: float) -> dict[str, float]:
        loss, wrong, opened = (self.sums / self.count).tolist()
        numbers = {"loss": loss, "error_percent": 100 * wrong}
        if gated:
            numbers["open_share"] = opened
        return numbers | {"images_per_second": self.count / seconds}

    def of_each(self, processes: Processes) -> tuple[Sums, ...]:
        """Return the sums and the count of every process."""
        rows = self.sums.new_zeros(processes.count, 4)
        rows[processes.rank] = torch.cat((self.sums, self.sums.new_tensor([self.count])))
        return tuple((a, b, c, count) for a, b, c, count in processes.total(rows).tolist())

    @classmethod
    def share_of(cls, rows: tuple[Sums, ...], plan: ComputePlan) -> "EpochSums":
        """Return this process's own sums; where there were more processes, theirs are shared."""
        mine = torch.tensor(rows, dtype=torch.float64)[plan.processes.rank :: plan.processes.count]
        *_, count = sums = mine.sum(dim=0)
        return cls(sums[:3].to(plan.device), int(count))

    def over(self, processes: Processes) -> "EpochSums":
        """Return the sums over all processes, whose parts of the epoch may differ in size."""
        counted = torch.cat((self.sums, self.sums.new_tensor([self.count])))
        *_, count = totals = processes.total(counted)
        return EpochSums(totals[:3], int(count))
