"""Principal components against scikit-learn's, and images in the plane with known neighbours."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from gaternet.analysis import embed, embedding, principal_components, record
from gaternet.analysis.embedding import why_no_embedding
from gaternet.analysis.sampling import some_rows
from generated_gates import gates_of, random_gates


@pytest.mark.parametrize(("images", "gates"), [(300, 40), (30, 60), (1, 5)])
def test_components_are_those_of_sklearn(
    images: int, gates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "UNPACKED", 7 * gates)  # gates are unpacked in parts
    rows = random_gates(images, gates)
    recorded = gates_of(rows)
    if images == 1:
        with pytest.raises(ValueError, match="no gate depends on the input"):
            principal_components(recorded)
        return
    found = principal_components(recorded)
    varying = rows[:, recorded.dependent()].astype(float)
    expected = PCA().fit(varying)
    count = min(images - 1, varying.shape[1])
    assert found.variances[:count] * images / (images - 1) == pytest.approx(
        expected.explained_variance_[:count], rel=1e-3, abs=1e-6
    )
    assert found.explained == pytest.approx(1, rel=1e-4)
    scores = found.project(recorded)[:, :count]
    # Axes are the same up to their sign.
    assert np.abs(scores) == pytest.approx(np.abs(expected.transform(varying)[:, :count]), abs=2e-2)


def test_leading_components_of_many_gates_are_found_by_iteration() -> None:
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((500, 6)) @ generator.standard_normal((6, 200))
    rows = (hidden + 0.3 * generator.standard_normal((500, 200)) > 0).astype(np.uint8)
    found = principal_components(gates_of(rows), 20)
    expected = PCA(20, svd_solver="full").fit(rows.astype(float))
    assert found.axes.shape == (200, 20)
    assert found.axes.T @ found.axes == pytest.approx(np.eye(20), abs=1e-4)
    assert found.explained == pytest.approx(expected.explained_variance_ratio_.sum(), rel=2e-3)
    assert found.variances[:6] * 500 / 499 == pytest.approx(
        expected.explained_variance_[:6], rel=1e-3
    )


def test_groups_of_images_stay_together_in_the_plane() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    patterns = generator.random((3, 50)) < 0.5
    rows = patterns[labels] ^ (generator.random((90, 50)) < 0.05)
    found = embed(gates_of(rows))
    assert found.points.shape == (90, 2)
    assert np.isfinite(found.points).all()
    assert found.components <= 50
    assert found.explained == pytest.approx(1, abs=1e-3)
    distance = np.linalg.norm(found.points[:, None] - found.points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert np.array_equal(embed(gates_of(rows)).points, found.points)


def test_of_many_images_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "EMBEDDED", 20)
    found = embed(gates_of(random_gates(60, 8)))
    assert found.points.shape == (20, 2)
    assert len(set(found.rows.tolist())) == 20
    assert (np.diff(found.rows) > 0).all()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.ones((9, 9)), "no input-dependent gates: t-SNE needs two"),
        (np.eye(9)[:, :1], "1 input-dependent gate: t-SNE needs two"),
        (np.eye(3), "3 images: t-SNE needs four"),
    ],
)
def test_what_cannot_be_laid_out_is_reported(rows: np.ndarray, reason: str) -> None:
    assert why_no_embedding(gates_of(rows)) == reason
    with pytest.raises(ValueError, match=reason):
        embed(gates_of(rows))


def test_gates_that_hardly_depend_on_the_input_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "EMBEDDED", 20)
    rows = np.zeros((60, 2))
    left = np.setdiff1d(np.arange(60), some_rows(60, 20))
    rows[left[0], 0] = rows[left[1], 1] = 1  # open for two images that are not drawn
    assert why_no_embedding(gates_of(rows)) == "no input-dependent gates: t-SNE needs two"


@pytest.mark.parametrize(("images", "gates"), [(4, 2), (5, 400), (12, 3)])
def test_few_images_or_gates_are_laid_out(images: int, gates: int) -> None:
    rows = np.random.default_rng(0).random((images, gates)) < 0.5
    rows[0], rows[1] = True, False
    assert why_no_embedding(gates_of(rows)) is None
    assert np.isfinite(embed(gates_of(rows)).points).all()


def test_alike_images_are_laid_out() -> None:
    rows = np.repeat([[0, 1], [1, 0]], 20, axis=0)
    assert np.isfinite(embed(gates_of(rows)).points).all()


def test_components_are_of_what_varies_not_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_SPARE", 0)
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((400, 2)) @ generator.standard_normal((2, 60))
    # Most gates are open for most images: without centring the mean is the first axis.
    rows = (hidden + 0.3 * generator.standard_normal((400, 60)) > -1.2).astype(np.uint8)
    recorded = gates_of(rows)
    found = principal_components(recorded, 2)
    expected = PCA(2, svd_solver="full").fit(rows.astype(float)[:, recorded.dependent()])
    assert found.explained == pytest.approx(expected.explained_variance_ratio_.sum(), rel=1e-2)
