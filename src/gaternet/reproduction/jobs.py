"""Runs that a block needs: each once, with the runs that it starts from.

A gated run of seed s starts from the backbone and the gater that `gaternet train` would pre-train
for it, of seeds s + 2000 and s + 1000. They are runs of their own here: they are rows of the table
as well, and the control starts from the same backbone.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from gaternet import recipes
from gaternet.measured_runs import SHORT
from gaternet.reproduction.targets import Block, Row, recipe_of
from gaternet.training.config import Recipe, parts
from gaternet.training.starting import SEED_OFFSETS, pretraining


@dataclass(frozen=True)
class Length:
    """How long everything is trained."""

    short: bool = False
    """By the recipes with a tenth of the paper's schedule, and what such a one needs."""
    epochs: int | None = None
    """Of each phase; none: the recipe's. Baselines that are trained as long as others in all their
    phases (`Row.as_long`) have those of both."""
    pretrain_epochs: int | None = None
    """Of networks that start from fresh weights, those that others start from among them; none: as
    many as every phase has."""

    def of(self, recipe: Recipe, *, as_long: bool = False) -> int:
        """Return for how many epochs a recipe is trained.

        as_long: see `Row`
        """
        joint = recipe.epochs if self.epochs is None else self.epochs
        if recipe.pretrain:
            return joint
        before = joint if self.pretrain_epochs is None else self.pretrain_epochs
        return before + joint if as_long else before


@dataclass(frozen=True)
class Job:
    """A run, and the runs whose weights its parts start from."""

    recipe: Recipe
    parts: Mapping[str, "Job"]

    @property
    def name(self) -> str:
        """What its directory and its file of results are called."""
        recipe, given = self.recipe, self.given.values()
        lengths = sorted({job.recipe.epochs for job in given})
        before = "".join(f"-after-{epochs}" for epochs in lengths)
        return f"{recipe.name.replace('/', '-')}-{recipe.epochs}ep{before}-seed{recipe.seed}"

    @property
    def given(self) -> Mapping[str, "Job"]:
        """Parts that are not what the recipe would pre-train by itself: trained for longer, say."""
        recipe = self.recipe
        own = {part: pretraining(part, recipe) for part in self.parts}
        return {part: job for part, job in self.parts.items() if job.recipe != own[part]}

    @property
    def command(self) -> str:
        """The command that trains the same network, after the parts that it pre-trains.

        Those that are given lie in runs/, where `gaternet reproduce` puts them unless it is told.
        """
        recipe = self.recipe
        words = ["--epochs", str(recipe.epochs), "--seed", str(recipe.seed)]
        for part, job in self.given.items():
            words += [f"--{part}", f"runs/{job.name}"]
        return shlex.join(["gaternet", "train", recipe.name, *words])


@dataclass(frozen=True)
class EnsembleJob(Job):
    """Networks that are averaged: nothing is trained.

    recipe: the backbone's, by the name of the row and with the seed of the gated network
    """

    @property
    def given(self) -> Mapping[str, Job]:
        """None: there is no phase behind those that trained its networks."""
        return {}

    @property
    def command(self) -> str:
        """The command that trains the networks and averages them."""
        recipe = self.recipe
        row = recipe.name.removesuffix(SHORT)
        length = ("--short",) if recipe.name.endswith(SHORT) else ()
        words = (*length, "--epochs", str(recipe.epochs), "--seeds", str(recipe.seed))
        return shlex.join(["gaternet", "reproduce", "table1", "--rows", row, *words])


def jobs_of(block: Block, rows: Iterable[str], seeds: Iterable[int], length: Length) -> list[Job]:
    """Return the runs of a block's chosen rows: all rows of one seed, then those of the next.

    rows: names of their recipes, with the paper's schedule
    """
    chosen = set(rows)
    wanted = [row for row in block.rows if row.recipe in chosen]
    named = [(row, name) for row in wanted if (name := recipe_of(row, short=length.short))]
    return [_job(row, name, seed, length) for seed in seeds for row, name in named]


def with_parts(jobs: Iterable[Job]) -> Iterator[Job]:
    """Yield every run that there is to be, each once, behind those that it starts from."""
    seen: set[str] = set()
    for job in jobs:
        for each in (*job.parts.values(), job):
            if each.name not in seen:
                seen.add(each.name)
                yield each


def _job(row: Row, name: str, seed: int, length: Length) -> Job:
    recipe = recipes.get(name)
    if not recipe.pretrain:
        seed += SEED_OFFSETS["backbone"]  # a plain network is its gated one's backbone
    recipe = replace(recipe, seed=seed, epochs=length.of(recipe, as_long=row.as_long))
    started = parts(recipe)[: len(recipe.pretrain)]
    jobs = {part: Job(_before(part, recipe, length), {}) for part in started}
    if not row.averages:
        return Job(recipe, jobs)
    named = row.recipe + name.removeprefix(row.averages)  # with what says that it is short
    return EnsembleJob(replace(jobs["backbone"].recipe, name=named, seed=seed), jobs)


def _before(part: str, joint: Recipe, length: Length) -> Recipe:
    recipe = pretraining(part, joint)
    epochs = length.pretrain_epochs
    return replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
