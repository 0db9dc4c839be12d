"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels that need no network."""

import numpy as np
import torch

from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.errors import UserError
from gaternet.randomness import Purpose, sample_keys

_TEST_SHARE = 500 / 1797


def load_digits(split: str) -> ImageSet:
    """Return 1,297 images for "train" or 500 for "test", (N, 1, 8, 8) uint8; the split is fixed.

    Every class gives the same share to the test. Raises UserError for another split.
    """
    import sklearn.datasets

    if split not in ("train", "test"):
        raise UserError(f"digits has no split {split!r}: it has test, train")
    bundle = sklearn.datasets.load_digits()
    images = torch.from_numpy(np.rint(bundle.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    keys = sample_keys(0, Purpose.SPLIT, 0, torch.arange(len(labels)))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = round(len(members) * _TEST_SHARE)
        test[members[keys[members].argsort()[:count]]] = True
    chosen = test if split == "test" else ~test
    classes = [str(name) for name in bundle.target_names]
    return make_image_set(images[chosen], labels[chosen], classes, "digits")
