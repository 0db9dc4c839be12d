"""What curves of error against costs show and are said to tell."""

from typing import Any

import numpy as np
import pytest

from gaternet.given_files import validate
from gaternet.reproduction.curve_figure import curve_figure
from gaternet.reproduction.curves import beside_plain, curve_section, label, unbeaten
from gaternet.reproduction.results import Curve, CurvePoint, Measurement
from generated_results import CURVE, right_of


def erring(row: dict[str, Any], wrong: int) -> dict[str, Any]:
    """Return a row of a network that errs on so many of 100 images, the first ones."""
    return row | {"error_percent": wrong, "judged": row["judged"] | {"right": right_of(wrong)}}


def point(error: float, macs: float) -> CurvePoint:
    row = CURVE["rows"][0] | {"error_percent": error, "macs": macs}
    return validate(CurvePoint, row)


def test_unbeaten_points_are_those_of_a_loop_over_pairs() -> None:
    draws = np.random.default_rng(0).integers(0, 6, (40, 2)).tolist()
    points = [point(error, macs) for error, macs in draws]
    expected = []
    for error, macs in draws:
        better = [
            (e, m) for e, m in draws if (e < error and m <= macs) or (e <= error and m < macs)
        ]
        if not better:
            expected.append((error, macs))
    found = [(p.error_percent, p.macs) for p in unbeaten(points, lambda p: p.macs)]
    assert found == expected
    assert expected


def test_networks_are_told_from_those_of_as_many_epochs() -> None:
    curve = validate(Curve, {"batch": 1, "rows": CURVE["rows"]})
    measured = Measurement("efficiency_x.json", "python x.py", "an abacus", "today", curve)
    lines = list(curve_section([measured], "../results", "figures"))
    assert (
        "| ResNet-20, budget 0.5 | 12 | +0.50 | 18.00 % | 17.0 M | 1.40 (1.30-1.50) | any |"
        in lines
    )
    assert "![Error over multiply-accumulates, and over time](figures/efficiency_x.png)" in lines
    # The start has had fewer epochs; the other threshold costs more than ResNet-8 and errs more.
    assert lines[-2] == (
        "Of the 2 plain and 2 gated points of 12 epochs, on the Pareto front of test error and "
        "multiply-accumulates: ResNet-8; ResNet-20, budget 0.5 at +0.00; ResNet-20. "
        "On that of error and time: ResNet-8; ResNet-20. "
        # 14 less 17 − 5 · (20.4 − 12.5) / (40.8 − 12.5) = 15.60
        "Against straight lines between the plain networks that no other plain one beats, each at "
        "the threshold that it was trained for, in percentage points of error, with 95 % intervals "
        "of other images: ResNet-20, budget 0.5 -1.6 ± 2.5."
    )


def test_one_mask_for_all_images_is_no_plain_network_and_has_one_point() -> None:
    gated = CURVE["rows"][3]
    alike = {"threshold": None, "offset": None}
    mask = erring(gated, 15) | alike | {"run": "runs/mask", "mask": "trained"}
    most = erring(gated, 13) | alike | {"mask": "majority"}
    narrow = erring(CURVE["rows"][0], 19) | {"run": "runs/narrow", "backbone": "resnet20-narrow"}
    narrow |= {"macs": 1e7}
    curve = validate(Curve, {"batch": 1, "rows": [*CURVE["rows"], narrow, mask, most]})
    measured = Measurement("efficiency_x.json", "python x.py", "an abacus", "today", curve)
    lines = list(curve_section([measured], "../results", "figures"))
    named = [
        line for line in lines if line.startswith("| ResNet-20, budget 0.5, one mask | 12 |  |")
    ]
    assert len(named) == 1
    assert any(line.startswith("| ResNet-20-Narrow | 12 |  |") for line in lines)
    assert lines[-2].startswith("Of the 3 plain, 2 masked and 2 gated points of 12 epochs")
    # 15 less 15.60: the line is that of the plain networks alone.
    assert (
        "ResNet-20, budget 0.5 -1.6 ± 2.5; ResNet-20, budget 0.5, one mask -0.6 ± 2.2; "
        "ResNet-20, budget 0.5, gates of most images -2.6 ± 2.8." in lines[-2]
    )
    assert [line.get_label() for line in curve_figure(curve).axes[0].lines] == [
        *("plain, 6 epochs", "plain, 12 epochs", "one mask, 12 epochs"),
        *("gates of most images, 12 epochs", "ResNet-20, budget 0.5, 12 epochs"),
    ]


def test_what_choosing_by_image_is_worth_is_asked_of_the_same_images() -> None:
    gated, alike = CURVE["rows"][3], {"threshold": None, "offset": None}
    wrong = {"gated": 40, "majority": 30, "trained": 52}
    points = [erring(gated, wrong["gated"])]
    for mask, other in (("majority", {}), ("trained", {"run": "runs/mask", "macs": 10.2e6})):
        points.append(erring(gated, wrong[mask]) | alike | other | {"mask": mask})
    elsewhere = points[2] | {"run": "runs/other", "budget": 0.7}
    curve = validate(Curve, {"batch": 1, "rows": [*CURVE["rows"][:3], *points, elsewhere]})
    measured = Measurement("efficiency_x.json", "python x.py", "an abacus", "today", curve)
    lines = list(curve_section([measured], "../results", "figures"))
    start = next(n for n, line in enumerate(lines) if line.startswith("| network | against |"))
    name, most = "ResNet-20, budget 0.5", "ResNet-20, budget 0.5, gates of most images"
    # Of the first 40, 30 and 52 of 100 images, all that the better one misses the other does too.
    half = [196 * (share * (1 - share) / 100) ** 0.5 for share in (0.10, 0.12, 0.22)]
    assert lines[start + 2 : start + 6] == [
        f"| {name} | {most} | +10.00 ± {half[0]:.2f} | higher error | 1.00 × |",
        f"| {name} | {name}, one mask | -12.00 ± {half[1]:.2f} | lower error | 2.00 × |",
        f"| {most} | {name}, one mask | -22.00 ± {half[2]:.2f} | lower error | 2.00 × |",
        "",
    ]


def test_a_plain_network_that_another_beats_makes_no_line() -> None:
    worse = erring(CURVE["rows"][0], 18) | {"run": "runs/worse", "macs": 2e7}
    points = validate(Curve, {"batch": 1, "rows": [*CURVE["rows"][:4], worse]}).rows
    alike = [each for each in points if each.epochs == 12]
    assert [np.size(line.get_xdata()) for line in curve_figure(Curve(1, points)).axes[0].lines] == [
        *(1, 1, 2),  # of 6 epochs; the one that is beaten, beside the line; the line
        1,
    ]
    found = {each.run: beside_plain(each, alike) for each in alike}
    gap = found["runs/gated"]
    assert gap is not None
    share = (20.4 - 12.5) / (40.8 - 12.5)
    assert gap.value == pytest.approx(14 - (17 - 5 * share))
    # All three err on the first images: 12 of 100 by none of the line, 5 by one of its networks.
    steps = np.array([0.0] * 12 + [share] * 2 + [share - 1] * 3 + [0.0] * 83)
    assert gap.half_width == pytest.approx(196 * steps.std() / 10)
    assert found["runs/worse"] is None


def test_what_is_cheaper_than_every_plain_network_is_compared_with_no_line() -> None:
    rows = [row for row in CURVE["rows"] if row["run"] != "runs/small"]
    curve = validate(Curve, {"batch": 1, "rows": rows})
    measured = Measurement("efficiency_x.json", "python x.py", "an abacus", "today", curve)
    assert "straight lines" not in "".join(curve_section([measured], "../results", "figures"))


def test_a_run_without_a_budget_goes_by_its_directory() -> None:
    rows = [{**row, "budget": None} for row in CURVE["rows"]]
    points = validate(Curve, {"batch": 1, "rows": rows}).rows
    assert [label(each) for each in points] == [
        *("ResNet-8", "ResNet-20", "ResNet-20", "ResNet-20, gated", "ResNet-20, gated")
    ]
    trained_on = validate(CurvePoint, rows[1] | {"goes_on": True})
    assert label(trained_on) == "ResNet-20-Control"


def test_every_point_is_drawn_over_both_costs() -> None:
    curve = validate(Curve, {"batch": 1, "rows": CURVE["rows"]})
    for axes, key, unit in zip(
        curve_figure(curve).axes, ("macs", "median_ms"), (1e6, 1), strict=True
    ):
        drawn = np.concatenate([line.get_xydata() for line in axes.lines])
        expected = [[row[key] / unit, row["error_percent"]] for row in CURVE["rows"]]
        assert sorted(drawn.tolist()) == sorted(expected)
        assert len(axes.lines) == 3  # plain of 6 epochs, of 12, gated


def test_what_rounds_to_nothing_has_no_minus() -> None:
    rows = [*CURVE["rows"][:3], CURVE["rows"][3] | {"threshold": -0.001}]
    measured = Measurement(
        "x.json", "x.py", "an abacus", "today", validate(Curve, {"batch": 1, "rows": rows})
    )
    page = "\n".join(curve_section([measured], "../results", "figures"))
    assert "| ResNet-20, budget 0.5 | 12 | +0.00 |" in page
    assert "ResNet-20, budget 0.5 at +0.00" in page
    assert "-0.00" not in page


def test_curves_are_of_the_same_images_and_of_their_errors() -> None:
    first, *rest = CURVE["rows"]
    elsewhere = first | {"judged": first["judged"] | {"fingerprint": "b"}}
    with pytest.raises(ValueError, match=r"runs/.* is judged on other images than the first"):
        validate(Curve, {"batch": 1, "rows": [*rest, elsewhere]})
    with pytest.raises(ValueError, match=r"judged: of .* error, not 1\.000 %"):
        validate(Curve, {"batch": 1, "rows": [first | {"error_percent": 1.0}, *rest]})
