"""Names that may have been meant."""

from gaternet.spelling import did_you_mean, near_names

RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110))


def test_equally_near_names_keep_their_order() -> None:
    # Each of these shares seven of eight letters with what was typed.
    assert near_names("resnet21", RESNETS) == ["resnet14", "resnet20", "resnet26"]


def test_the_nearest_comes_first() -> None:
    assert near_names("predct", ("product", "predict", "train"))[0] == "predict"
    assert near_names("resnet56", RESNETS)[0] == "resnet56"


def test_what_is_far_is_not_offered() -> None:
    assert near_names("vgg", RESNETS) == []
    assert near_names("vgg", ()) == []
    assert did_you_mean("vgg", RESNETS, "see the list") == "see the list"
    assert did_you_mean("evaluat", ("evaluate", "train"), "") == "did you mean evaluate?"
