"""The paper's findings beside gates of which it is known whether they hold."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gaternet.analysis.behaviour import Behaviour
from gaternet.given_files import validate
from gaternet.measured_runs import MeasuredRun
from gaternet.reproduction.gate_findings import (
    RULES,
    UNIFORM_DISTANCE,
    Finding,
    finding_figures,
    findings,
    findings_section,
)
from gaternet.reproduction.gate_swaps import trained_for
from gaternet.reproduction.results import Measurement
from generated_results import BEHAVIOUR

REDUNDANCY, DEPENDENCE, CLASSES, DIVISION, NORMALITY = range(5)


def judged(**others: object) -> list[Finding]:
    return findings(validate(Behaviour, BEHAVIOUR | others))


def layers(off: list[int], on: list[int]) -> list[dict[str, Any]]:
    return [
        {"name": f"layer{n}", "total": 16, "always_on": on[n], "always_off": off[n]}
        for n in range(8)
    ]


def test_what_the_paper_says_holds_where_it_does() -> None:
    assert [finding.verdict for finding in judged()] == ["holds"] * 5


@pytest.mark.parametrize(
    ("off", "on", "redundancy", "dependence"),
    [
        (list(range(8)), [0] * 8, "contradicted", "contradicted"),
        ([0] * 8, list(range(7, -1, -1)), "inconclusive", "holds"),
        ([3, 1, 2, 3, 1, 2, 3, 1], [0] * 8, "inconclusive", "inconclusive"),
        ([5] * 8, [2] * 8, "inconclusive", "inconclusive"),
    ],
)
def test_trends_go_by_the_share_of_each_kind(
    off: list[int], on: list[int], redundancy: str, dependence: str
) -> None:
    found = judged(layers=layers(off, on))
    assert (found[REDUNDANCY].verdict, found[DEPENDENCE].verdict) == (redundancy, dependence)
    assert f"{sum(off):,} of 128 gates are off for all of 1,000 images" in found[REDUNDANCY].here
    assert f"{128 - sum(off) - sum(on):,} of 128 gates depend" in found[DEPENDENCE].here


def test_numbers_are_those_that_were_measured() -> None:
    found = judged()
    # 6 of 16 gates of the first layer are open, 13 of the last.
    assert "62 % of the first layer's gates and 19 % of the last layer's" in found[REDUNDANCY].here
    assert "0.00 bits in the first layer and 0.70 in the last" in found[DEPENDENCE].here
    assert "have 83.3 % alike and two of different classes 53.3 %" in found[CLASSES].here
    assert "80.0 % of the images are given their class" in found[CLASSES].here
    assert found[DIVISION].here == (
        "under the gates of an image of another class, 30.0 % of 1,000 images are given that class "
        "and 60.0 % their own. Where a vote of the ten nearest gate vectors is right, the network "
        "is right for 95.0 %. Where a vote of the ten nearest gate vectors is wrong, the network "
        "is right for 70.0 %."
    )
    assert "opens 70 to 74 gates, 72.0 on average" in found[NORMALITY].here
    assert "images open all" not in found[NORMALITY].here


def test_classes_are_told_by_the_interval() -> None:
    same = [[0.5, 0.6, 0.4], [0.6, 0.5, 0.5], [0.4, 0.5, 0.5]]
    assert judged(agreement=same)[CLASSES].verdict == "inconclusive"
    lower = [[0.1, 0.6, 0.6], [0.6, 0.1, 0.61], [0.6, 0.61, 0.1]]
    assert judged(agreement=lower)[CLASSES].verdict == "contradicted"


@pytest.mark.parametrize(
    ("own", "theirs", "verdict"),
    [
        (0.21, 0.65, "contradicted"),
        # 1.96·√((0.45 + 0.4 − 0.05²) / 1000) = 0.0571
        (0.45, 0.4, "inconclusive"),
        (0.46, 0.4, "holds"),
    ],
)
def test_who_is_believed_is_told_by_the_interval(own: float, theirs: float, verdict: str) -> None:
    swap = BEHAVIOUR["swaps"][1] | {"accuracy": own, "followed": theirs}
    assert judged(swaps=[swap])[DIVISION].verdict == verdict


def test_of_a_file_from_before_it_is_said_that_this_was_not_measured() -> None:
    swap = {name: value for name, value in BEHAVIOUR["swaps"][1].items() if name != "followed"}
    probes = {n: v for n, v in BEHAVIOUR["probes"].items() if not n.startswith("model_")}
    found = judged(swaps=[swap], probes=probes)[DIVISION]
    assert found.verdict == "inconclusive"
    assert found.here == "not measured: the file is of an earlier version."


def test_of_one_class_nothing_is_said_of_who_is_believed() -> None:
    assert judged(swaps=BEHAVIOUR["swaps"][:1])[DIVISION].verdict == "inconclusive"


def test_of_gates_that_never_change_nothing_is_said_of_classes_and_who_is_believed() -> None:
    found = judged(layers=layers([4] * 8, [12] * 8), probes=None)
    for finding in (found[CLASSES], found[DIVISION]):
        assert finding.here == "no gate depends on the image: all images have the same."
        assert finding.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("distance", "verdict"),
    [(0.147, "contradicted"), (0.06, "inconclusive"), (0.01, "holds"), (None, "inconclusive")],
)
def test_normal_is_what_is_nearer_than_a_uniform_distribution(
    distance: float | None, verdict: str
) -> None:
    opened = BEHAVIOUR["open_gates"] | {"distance": distance, "most": 128}
    found = judged(open_gates=opened, all_open={"cat": 1, "eel": 99})[NORMALITY]
    assert found.verdict == verdict
    assert "100 images open all, 99 of them of class eel." in found.here
    single = {"open_gates": opened, "opened": [*BEHAVIOUR["opened"][:-1], 99, 1]}
    found = judged(**single, all_open={"cat": 0, "eel": 1})[NORMALITY]
    assert "One image, of class eel, opens all." in found.here
    # Of 1,000 normal draws 95 in 100 stay within 0.043.
    assert ("not exactly normal" in found.here) == (distance in (0.147, 0.06))
    earlier = judged(open_gates=opened, all_open=None)[NORMALITY]
    assert "100 images open all. Kolmogorov" in earlier.here or distance is None


def test_distance_of_a_uniform_distribution() -> None:
    from scipy.stats import norm, uniform

    x = np.linspace(-3, 3, 100_001)
    gap = np.abs(uniform.cdf(x, -np.sqrt(3), 2 * np.sqrt(3)) - norm.cdf(x)).max()
    assert gap == pytest.approx(UNIFORM_DISTANCE, abs=5e-4)


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (-2e4, 1e4, "of 6.0 points; images that are classified wrongly need 2.0 ± 1.0 points less"),
        (3e4, 1e4, "need 3.0 ± 1.0 points more than the others."),
        (None, None, "needs 50.0 % of the plain backbone's multiply-accumulates on average, the "),
    ],
)
def test_it_is_said_whether_hard_images_cost_more(
    difference: float | None, interval: float | None, said: str
) -> None:
    outcome = {"right": 1.0, "wrong": 1.0, "difference": difference, "interval": interval}
    costs = {"backbone": 1_000_000, "mean": 5e5, "deviation": 6e4, "uncounted": {}}
    found = judged(costs=costs | {"by_outcome": outcome})[NORMALITY]
    assert said in found.here
    assert (difference is None) == found.here.endswith("of 6.0 points.")
    assert "multiply-accumulates" not in judged()[NORMALITY].here


def test_gates_that_never_change_have_no_picture_of_classes() -> None:
    nothing = [[None] * 3] * 3
    finding = judged(agreement=nothing, probes=None)[CLASSES]
    assert (finding.verdict, finding.figure) == ("inconclusive", None)
    behaviour = validate(Behaviour, BEHAVIOUR | {"agreement": nothing})
    assert [name for name, _ in finding_figures(behaviour)] == ["kinds", "entropy", "open-gates"]


def test_the_run_is_named_by_its_files() -> None:
    measured = Measurement(
        "findings_r20.json", "x.py", "abacus", "today", validate(Behaviour, BEHAVIOUR)
    )
    run = MeasuredRun(
        "cifar10/resnet20-gated-short", True, 8.0, None, 30, None, 0, "abacus", [], "a.json"
    )
    run = replace(run, pretrain_epochs={"backbone": 30, "gater": 30})
    changes: list[dict[str, Any]] = [{"seed": 1}, {"pretrain_epochs": {"backbone": 16}}]
    changes.append({"differs": ["optimizer.lr"]})
    others = [replace(run, file="b.json", **change) for change in changes]
    text = "\n".join(findings_section([measured], [*others, run], "../results", "figures"))
    assert "[findings_r20](../results/findings_r20.json)" in text
    assert "[seed 0, 30 epochs](../results/a.json)" in text
    assert "(figures/findings_r20-kinds.png)" in text
    assert "with seed 0, 30 epochs in" in "\n".join(
        findings_section([measured], others, "../results", "figures")
    )


def test_seeds_stand_together_and_the_best_one_has_the_figures() -> None:
    swap = BEHAVIOUR["swaps"][1] | {"accuracy": 0.1, "followed": 0.5}
    others = ({"seed": 1, "accuracy": 0.95}, {"seed": 2, "epochs": 5}, {"swaps": [swap]})
    measured = [
        Measurement(f"findings_{n}.json", "x.py", "abacus", "today", validate(Behaviour, made))
        for n, made in enumerate(BEHAVIOUR | each for each in others)
    ]
    text = "\n".join(findings_section(measured, [], "../results", "figures"))
    assert text.count("## What the gates do: ") == 2
    assert "## What the gates do: cifar10/resnet20-gated-short, 30, then 5 epochs\n" in text
    assert text.count(RULES) == 1
    start = text.index("## What the gates tell of the class")
    rows = [line for line in text[start:].splitlines() if line.startswith("|")][2:5]
    name = "cifar10/resnet20-gated-short"
    assert rows == [  # the best first
        f"| {name} | 30, then 30 | 1 | 90.0 % | 80.0 % | 60.0 % | 30.0 % | 80.0 % |",
        f"| {name} | 30, then 30 | 0 | 90.0 % | 80.0 % | 10.0 % | 50.0 % |  |",
        f"| {name} | 30, then 5 | 2 | 90.0 % | 80.0 % | 60.0 % | 30.0 % | 80.0 % |",
    ]
    assert text.count("### What becomes of the accuracy under other gates") == 2
    assert "Seed 1:\n\n| gates of the backbone | images |" in text
    assert "Seed 0:\n\n| gates of the backbone | images |" in text
    assert "| open for most images | 1,000 | 80.0 % | -10.0 ± 2.0 |  |" in text
    assert "| an image's of another class | 1,000 | 10.0 % | -30.0 ± 2.0 | 50.0 % |" in text
    begun = {"backbone": 30, "gater": 16}
    apart = validate(Behaviour, BEHAVIOUR | {"pretrain_epochs": begun})
    assert trained_for(apart) == "30 and 16, then 30"
    assert trained_for(validate(Behaviour, BEHAVIOUR | {"pretrain_epochs": None})) == "30"
    without = validate(Behaviour, BEHAVIOUR | {"swaps": []})
    alone = Measurement("findings_3.json", "x.py", "abacus", "today", without)
    assert "accuracy under other" not in "\n".join(findings_section([alone], [], "..", "figures"))
    assert "over the prediction: holds for seed 1, contradicted for seed 0\n" in text
    assert "### Images of a class use similar gates: holds\n" in text
    assert text.index("\nSeed 1: ") < text.index("\nSeed 0: ") < text.index("\nHere: ")
    assert "(figures/findings_0-kinds.png)" in text
    assert "(figures/findings_1-kinds.png)" not in text
    assert "(figures/findings_2-kinds.png)" not in text
