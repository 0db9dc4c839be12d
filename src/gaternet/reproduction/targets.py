"""What is to be measured: blocks of rows that may be compared, and what is asked of them."""

import re
from dataclasses import dataclass
from functools import cache

from gaternet import paper
from gaternet.ledger import recipe_name
from gaternet.measured_runs import SHORT
from gaternet.recipes import RECIPES
from gaternet.recipes.comparisons import ONE_MASK, SCRATCH, VARIANTS
from gaternet.recipes.efficient import BUDGET, OTHER_BUDGETS

DEPTHS = (20, 56, 164)
DATASETS = ("cifar10", "cifar100")
CHEAPER = {"-budget-35": "resnet20-narrow", "": "resnet20-narrow", "-budget-70": "resnet14"}
"""How a budget's recipe ends → the plain network below it that needs most multiply-accumulates,
but for ResNet-8, which needs more than a ResNet-20 of half the width and fits even its training
images less well."""
MASKS_REMARK = """\
Masks that are trained are not the best that there are: whether it pays to choose by image is seen
below, where the same networks stand beside the gates that they open for most images."""


@dataclass(frozen=True)
class Row:
    """A network of a block."""

    label: str
    recipe: str
    """With the paper's schedule."""
    paper_error: float | None = None
    """Percent, as printed."""
    averages: str | None = None
    """Recipe of a gated network: the two that it starts from are averaged, and nothing is trained;
    none: the row is trained by its own recipe."""
    as_long: bool = False
    """Whether it is trained from fresh weights for as long as others before their gates and with
    them together; otherwise for as long as these before."""


@dataclass(frozen=True)
class Block:
    """Rows that may be compared, in the order in which they are trained."""

    title: str
    rows: tuple[Row, ...]
    comparisons: tuple[tuple[str, str], ...]
    """Recipes, the first measured against the second."""
    beside: tuple[tuple[str, str], ...] = ()
    """The same, asked only where one of the comparisons can be answered."""
    phases_alike: bool = True
    """Whether what goes on from trained networks is to be trained for as long as these were. Where
    not, of plain networks those backbones are shown that something goes on from: all else is
    table 1's."""
    subject: str | None = None
    """The recipe that it is about: without a run of it there is no table; none: any two rows do."""
    short_only: bool = False
    """Whether only the short recipes of its rows are trained alike."""
    remark: str = ""
    """What a reader should know besides."""

    def row(self, recipe: str) -> Row:
        """Return the row of a recipe."""
        return next(row for row in self.rows if row.recipe == recipe)


def table1() -> tuple[Block, ...]:
    """The paper's Table 1, and baselines that it lacks: one depth on both data sets, the next."""
    return tuple(_of_depth(data, depth) for depth in DEPTHS for data in DATASETS)


def ablations() -> tuple[Block, ...]:
    """The gated ResNet-20 on CIFAR-10 with one thing changed."""
    gated = "cifar10/resnet20-gated"
    kinds = ("", "-control", "-ensemble")
    plain, control, ensemble = (gated.replace("-gated", kind) for kind in kinds)
    varied = {f"{gated}-{variant.suffix}": variant.title for variant in (*VARIANTS, SCRATCH)}
    rows = (
        Row("ResNet-20", plain),
        Row("ResNet-20-Control", control),
        Row("ResNet-20-Ensemble", ensemble, averages=gated),
        Row("ResNet-20-Gated", gated),
        *(Row(title, name, as_long=not RECIPES[name].pretrain) for name, title in varied.items()),
    )
    asked = tuple((name, other) for other in (gated, control) for name in varied)
    title = "CIFAR-10, ResNet-20-Gated with one thing changed"
    # By themselves these are table 1's questions.
    beside = (*((name, gated) for name in (plain, control, ensemble)), (control, plain))
    return (Block(title, rows, asked, beside, phases_alike=False, subject=gated),)


def efficient() -> tuple[Block, ...]:
    """ResNet-20 on CIFAR-10 with gates that save multiply-accumulates, beside smaller networks."""
    plain = "cifar10/resnet20"
    gated, control = f"{plain}-efficient", f"{plain}-control"
    fixed = f"{gated}-{ONE_MASK.suffix}"
    smaller = ("resnet8", "resnet20-narrow", "resnet14")
    others = {f"{each.gating['budget']:g}": f"-{each.suffix}" for each in OTHER_BUDGETS}
    budgets = {f"{BUDGET:g}": "", **others}
    rows = (
        Row("ResNet-20", plain),
        Row("ResNet-20-Control", control),
        *(Row(f"ResNet-20, budget {share}", gated + end) for share, end in budgets.items()),
        *(Row(titled(name), f"cifar10/{name}", as_long=True) for name in smaller),
        *(Row(f"one mask, budget {share}", fixed + end) for share, end in budgets.items()),
    )
    masks = tuple((gated + end, fixed + end) for end in budgets.values())
    whole = tuple((gated + end, control) for end in budgets.values())
    cheaper = tuple((gated + end, f"cifar10/{name}") for end, name in CHEAPER.items())
    title = "CIFAR-10, ResNet-20 with gates that save multiply-accumulates"
    # The paper's schedule has steps where that of gates on a budget is a cosine.
    asked = masks + whole + cheaper
    return (Block(title, rows, asked, phases_alike=False, short_only=True, remark=MASKS_REMARK),)


TARGETS = {"table1": table1, "ablations": ablations, "efficient": efficient}


def titled(backbone: str) -> str:
    """Return how a table names a network: resnet20-narrow → ResNet-20-Narrow."""
    variants = {"": "", "-narrow": "-Narrow", "-se": "-SE", "-wider": "-Wider"}
    found = re.fullmatch(r"resnet(\d+)(.*)", backbone)
    if found is None or found[2] not in variants:
        return backbone
    return f"ResNet-{found[1]}{variants[found[2]]}"


def recipe_of(row: Row, *, short: bool) -> str | None:
    """Return the name of the recipe that a row is trained by, or whose parts it averages.

    None where that has no short schedule.
    """
    full = row.averages or row.recipe
    name = f"{full}{SHORT}" if short else full
    return name if name in RECIPES else None


@cache
def _printed() -> dict[str, paper.PaperRow]:
    return {recipe_name(row): row for row in paper.ROWS if row.table == 1}


def _of_depth(dataset: str, depth: int) -> Block:
    plain = f"{dataset}/resnet{depth}"
    kinds = ("gated", "control", "ensemble", "se", "wider")
    gated, control, ensemble, se, wider = (f"{plain}-{kind}" for kind in kinds)
    printed = _printed()
    rows = {name: Row(printed[name].model, name, printed[name].error) for name in printed}
    title = RECIPES[plain].data.title
    return Block(
        f"{title}, ResNet-{depth}",
        (
            rows[plain],
            rows[gated],
            Row(f"ResNet-{depth}-Control", control),
            Row(f"ResNet-{depth}-Ensemble", ensemble, averages=gated),
            rows[se],
            rows[wider],
        ),
        (
            *((gated, other) for other in (plain, control, ensemble, se, wider)),
            (control, plain),  # not the ensemble, whose networks are among the plain ones
        ),
    )
