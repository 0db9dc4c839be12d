"""Names that may have been meant."""

from gaternet.spelling import did_you_mean, near_names

RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110))


def test_of_equally_near_names_the_beginning_counts_then_the_order() -> None:
    # Each of these shares seven of eight letters with what was typed, two of them the first seven.
    assert near_names("resnet21", RESNETS) == ["resnet20", "resnet26", "resnet14"]
    assert near_names("resnet21", RESNETS[::-1]) == ["resnet26", "resnet20", "resnet32"]


def test_the_nearest_comes_first() -> None:
    assert near_names("predct", ("product", "predict", "train"))[0] == "predict"
    assert near_names("resnet56", RESNETS)[0] == "resnet56"


def test_what_is_far_is_not_offered() -> None:
    assert near_names("vgg", RESNETS) == []
    assert near_names("vgg", ()) == []
    assert did_you_mean("vgg", RESNETS, "see the list") == "see the list"
    assert did_you_mean("evaluat", ("evaluate", "train"), "") == "did you mean evaluate?"
