"""The page in a real browser: what it shows against numpy, and that it stays offline."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Visit, visiting
from gaternet.analysis.page import Page, PageBar, PageTable, write_page
from gaternet.analysis.page.arrays import page_arrays
from gaternet.errors import UserError

IMAGES, CLASSES, WIDTHS = 60, 4, (5, 12, 7, 3)
NUMBER = "input[aria-label='Number of image {}']"
NAMES = ("cat", "<b>dog</b>", "</script><script>1", "a & b &lt; %{x}")


def fake_gates(seed: int = 0) -> np.ndarray:
    """Return gates (N, G) of which classes differ; layer 4 is constant, as are some others."""
    generator = np.random.default_rng(seed)
    rates = generator.random((CLASSES, sum(WIDTHS)))
    rates[:, [0, 24]], rates[:, [6, 25, 26]] = 1, 0
    return (generator.random((IMAGES, sum(WIDTHS))) < rates[fake_labels()]).astype(np.uint8)


def fake_labels() -> np.ndarray:
    return np.arange(IMAGES) % CLASSES


def fake_page(gates: np.ndarray | None = None) -> Page:
    generator = np.random.default_rng(1)
    gates = fake_gates() if gates is None else gates
    labels, count = fake_labels()[: len(gates)], len(gates)
    stops = np.cumsum(WIDTHS).tolist()
    return Page(
        title="Gates of <i>a run</i> & more",
        classes=NAMES,
        slices={
            f"layer{n}.<u>": slice(stop - width, stop)
            for n, (stop, width) in enumerate(zip(stops, WIDTHS, strict=True))
        },
        bits=np.packbits(gates, axis=1),
        images=generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        predictions=np.where(np.arange(count) % 5 == 0, (labels + 1) % CLASSES, labels),
        labels=labels,
        embedding=generator.normal(size=(count, 2)),
        mutual_information=generator.random(sum(WIDTHS)),
        similarity=np.eye(CLASSES),
        macs=gates.sum(axis=1) * 1000,
        backbone_macs=27_000,
        opening=generator.permuted(np.tile(np.arange(count), (sum(WIDTHS), 1)), axis=1)[:, :8].T,
        closing=generator.permuted(np.tile(np.arange(count), (sum(WIDTHS), 1)), axis=1)[:, :8].T,
        split_rates=generator.random((2, sum(WIDTHS))),
        against="<i>train</i>",
        bars=(PageBar("its own", 0.9, 0), PageBar("<b>others", 0.4, 0.02)),
        chance=0.25,
        tables=(PageTable("<b>T</b>", "what & why", ("gates", "accuracy"), (("own", "90 %"),)),),
    )


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    with visiting(tmp_path_factory.mktemp("profile")) as visit:
        yield visit


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    write_page(fake_page(), file)
    return file


@pytest.fixture
def opened(visit: Visit, page_file: Path) -> Iterator[Visit]:
    """A page of 60 images as it opens; when the test has ended, nothing went wrong on it."""
    visit.wrong.clear()
    if visit.tab.url != page_file.as_uri():
        visit.open(page_file)
    if visit.tab.is_enabled("#all"):
        visit.tab.click("#all")
    for letter, image in (("B", "1"), ("A", "0")):
        visit.tab.fill(NUMBER.format(letter), image)
        visit.tab.press(NUMBER.format(letter), "Enter")
    visit.tab.evaluate("scrollTo(0, 0)")
    yield visit
    assert visit.wrong == []


def place(visit: Visit, page: Page, image: int) -> dict[str, float]:
    """Return where on the map an image lies, from its embedding."""
    box = visit.tab.locator("#map").bounding_box()
    assert box is not None
    assert page.embedding is not None
    low, high = page.embedding.min(axis=0), page.embedding.max(axis=0)
    x, y = 0.06 + 0.88 * (page.embedding[image] - low) / (high - low)
    return {"x": float(x * box["width"]), "y": float(y * box["height"])}


def expected_numbers(a: int, b: int) -> list[list[str]]:
    """Return the table of two images' gates by layer, counted one by one."""
    gates, labels = fake_gates().astype(float), fake_labels()
    rows, start = [], 0
    for layer, width in enumerate(WIDTHS):
        columns = slice(start, start + width)
        row = [f"layer{layer}.<u>", str(width)]
        for image in (a, b):
            mean = gates[labels == labels[image]].mean(axis=0)[columns]
            own = gates[image, columns]
            row += [f"{own.sum():.0f}", f"{mean.sum():.2f}", f"{np.abs(own - mean).sum():.2f}"]
        rows.append([*row, f"{(gates[a, columns] != gates[b, columns]).sum():.0f}"])
        start += width
    return rows


def test_opens_from_disk_and_says_what_is_in_it(opened: Visit, tmp_path: Path) -> None:
    gates = fake_gates()
    rates = gates.mean(axis=0)
    dependent = int(((rates > 0) & (rates < 1)).sum())
    assert opened.text("#title") == "Gates of <i>a run</i> & more"
    assert opened.text("#facts") == (
        f"60 images · 4 classes · {dependent} of 27 gates depend on the input · "
        "20.00 % wrongly classified"
    )
    assert opened.table("#tables-box") == [["own", "90 %"]]
    shares = {str(trace["name"]): trace["y"] for trace in opened.drawn("fig-kinds")}
    start = 0
    for layer, width in enumerate(WIDTHS):
        part = rates[start : start + width]
        on, off = (part == 1).mean(), (part == 0).mean()
        found = [shares[name][layer] for name in ("always on", "input-dependent", "always off")]
        assert found == pytest.approx([100 * on, 100 * (1 - on - off), 100 * off])
        start += width
    opened.tab.screenshot(path=tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1366, 768)


def test_choosing_a_class_changes_the_figures(opened: Visit) -> None:
    gates, labels = fake_gates(), fake_labels()
    assert [trace["name"] for trace in opened.drawn("fig-layers")] == ["all images"]
    opened.tab.select_option("#class", "1")
    everything, own = opened.drawn("fig-layers")
    stops = np.cumsum(WIDTHS)[:-1]
    for trace, rows in ((everything, gates), (own, gates[labels == 1])):
        expected = [100 * part.mean() for part in np.split(rows, stops, axis=1)]
        assert trace["y"] == pytest.approx(expected, abs=1e-4)
    assert opened.text("#left") == "15 of 60 images"
    first = opened.table("#special")[0]
    apart = gates[labels == 1].mean(axis=0) - gates[labels != 1].mean(axis=0)
    assert first[3] == f"{100 * apart[np.abs(apart).argmax()]:+.1f}".replace("-", "−")
    opened.tab.click("#all")
    assert len(opened.drawn("fig-layers")) == 1


def test_open_gates_and_their_fit(opened: Visit) -> None:
    counts = fake_gates().sum(axis=1)
    bars, fit = opened.drawn("fig-open")
    assert dict(zip(bars["x"], bars["y"], strict=True)) == {
        float(n): (counts == n).sum() for n in range(counts.min(), counts.max() + 1)
    }
    middle = int(np.argmax(fit["y"]))
    assert fit["x"][middle] == pytest.approx(counts.mean(), abs=0.1)
    peak = IMAGES / (counts.std() * np.sqrt(2 * np.pi))
    assert fit["y"][middle] == pytest.approx(peak, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("span", [22, 49, 130])
def test_bars_count_whole_numbers(visit: Visit, tmp_path: Path, span: int) -> None:
    """Of `span` different counts of open gates, and of as many opening rates."""
    visit.wrong.clear()
    opened = np.append(np.arange(2 * span) % span, 0)[:, None] > np.arange(span)
    count = len(opened)
    labels = np.arange(count) % CLASSES
    page = Page(
        "stairs", NAMES, {"layer": slice(0, span)}, np.packbits(opened, axis=1),
        np.zeros((count, 1, 1, 3), dtype=np.uint8), labels, labels,
    )  # fmt: skip
    write_page(page, tmp_path / "page.html")
    visit.open(tmp_path / "page.html")
    visit.tab.select_option("#class", "1")
    for name, own in (("all", opened), ("class", opened[labels == 1])):
        bars, line = visit.drawn("fig-open")[0], visit.drawn("fig-open")[1]
        wide = 1 if span < 60 else 3
        counts = np.bincount(own.sum(axis=1) // wide, minlength=len(bars["y"]))
        scaled = counts * count / len(own)
        assert (bars if name == "all" else line)["y"] == pytest.approx(scaled)
        assert bars["x"] == pytest.approx(np.arange(len(counts)) * wide + (wide - 1) / 2)
        rates = visit.drawn("fig-rates")[name == "class"]
        shown = np.flatnonzero(opened.any(axis=0) & ~opened.all(axis=0))
        bins = [min(49, 50 * int(n) // len(own)) for n in own[:, shown].sum(axis=0)]
        assert rates["y"] == np.bincount(bins, minlength=50).tolist()
        assert rates["x"] == list(range(1, 101, 2))
    assert visit.wrong == []


def test_clicking_a_point_shows_its_gates(opened: Visit) -> None:
    page = fake_page()
    opened.tab.click("#numbers summary")
    opened.tab.evaluate("scrollTo(0, 0)")
    assert opened.table("#numbers-box") == expected_numbers(0, 1)
    opened.tab.click("#map", position=place(opened, page, 17))  # type: ignore[arg-type]
    opened.tab.keyboard.down("Shift")
    opened.tab.click("#map", position=place(opened, page, 42))  # type: ignore[arg-type]
    opened.tab.keyboard.up("Shift")
    assert opened.tab.input_value(NUMBER.format("A")) == "17"
    assert opened.table("#numbers-box") == expected_numbers(17, 42)
    differing = int((fake_gates()[17] != fake_gates()[42]).sum())
    assert f"A and B differ in {differing} of" in opened.text("#pair-about")


def test_hovering_shows_the_image(opened: Visit) -> None:
    opened.tab.hover("#map", position=place(opened, fake_page(), 5))  # type: ignore[arg-type]
    assert "image 5" in opened.text("#tip")
    assert NAMES[1] in opened.text("#tip")
    assert f"taken for {NAMES[2]}" in opened.text("#tip")
    assert opened.tab.locator("#tip canvas").count() == 1


def test_keyboard(opened: Visit) -> None:
    opened.tab.focus(".skip")
    for _ in range(40):
        opened.tab.keyboard.press("Tab")
        if opened.tab.evaluate("document.activeElement.id") == "class":
            opened.tab.keyboard.press("ArrowDown")  # class 0
        if opened.tab.evaluate("document.activeElement.id") == "map":
            break
    else:
        pytest.fail("the map cannot be reached")
    opened.tab.keyboard.press("ArrowRight")
    opened.tab.keyboard.press("ArrowRight")
    assert opened.tab.input_value(NUMBER.format("A")) == "8"
    opened.tab.keyboard.press("b")
    opened.tab.keyboard.press("End")
    assert opened.tab.input_value(NUMBER.format("B")) == "56"
    opened.tab.focus("#strips")
    opened.tab.keyboard.press("ArrowRight")
    opened.tab.keyboard.press("ArrowDown")
    opened.tab.keyboard.press("Enter")
    assert opened.text("#tip").startswith("layer1.<u>, gate 0")
    assert opened.text("#no-gate") == "✕ layer1.<u>, gate 0"


def test_who_opens_a_chosen_gate_and_who_closes_it(opened: Visit) -> None:
    page, gates = fake_page(), fake_gates()
    assert page.opening is not None
    assert page.closing is not None
    assert not opened.tab.is_visible("#extremes")
    opened.tab.focus("#strips")
    opened.tab.keyboard.press("ArrowDown")
    opened.tab.keyboard.press("Enter")
    first = 5  # of layer 1
    assert opened.text("#extremes-about").startswith("layer1.<u>, gate 0")
    for side, places in (("#opening", page.opening), ("#closing", page.closing)):
        titled = [
            f"image {n}, {NAMES[n % CLASSES]}: {'open' if gates[n, first] else 'closed'}"
            for n in places[:, first]
        ]
        buttons = opened.tab.locator(f"{side} button")
        titles = "buttons => buttons.map(button => button.title)"
        assert buttons.evaluate_all(titles) == titled
    opened.tab.locator("#closing button").nth(2).click()
    assert opened.tab.input_value(NUMBER.format("A")) == str(page.closing[2, first])
    opened.tab.click("#no-gate")
    assert not opened.tab.is_visible("#extremes")


def test_what_a_class_opens_beyond_the_mean_class(opened: Visit) -> None:
    gates, labels = fake_gates(), fake_labels()
    shares = np.array(
        [
            [part.mean() for part in np.split(gates[labels == k], np.cumsum(WIDTHS)[:-1], axis=1)]
            for k in range(CLASSES)
        ]
    )
    drawn = opened.tab.evaluate("document.getElementById('fig-class-layers').data[0].z")
    assert np.array(drawn) == pytest.approx(100 * (shares - shares.mean(axis=0)), abs=1e-4)


def test_other_gates_and_other_images(opened: Visit) -> None:
    page = fake_page()
    (bars,) = opened.drawn("fig-swaps")
    assert bars["x"] == pytest.approx([90, 40])
    ends = opened.tab.evaluate("document.getElementById('fig-swaps').data[0].error_x.array")
    assert ends == pytest.approx([0, 2])
    assert "commonest class for all, 25.0 %" in opened.text("#swaps-about")
    assert page.split_rates is not None
    own, other = 100 * page.split_rates
    _, dots = opened.drawn("fig-agreement")
    assert dots["y"] == pytest.approx(own, abs=1e-4)
    assert dots["x"] == pytest.approx(other, abs=1e-4)
    assert opened.text("#agreement-about") == ": these images beside <i>train</i> images"


def test_names_are_text(opened: Visit) -> None:
    assert opened.tab.locator("main b:text-is('dog')").count() == 0
    assert opened.tab.locator("#legend button span").all_inner_texts() == list(NAMES)
    for choice in ("1", "2", "3"):
        opened.tab.select_option("#class", choice)
        shown = opened.tab.eval_on_selector_all(
            "#fig-layers .legendtext", "labels => labels.map(label => label.textContent)"
        )
        assert shown == ["all images", NAMES[int(choice)]]


BARE: dict[str, Any] = dict.fromkeys(
    ("mutual_information", "similarity", "macs", "opening", "closing", "split_rates", "chance")
) | {"bars": ()}
CONSTANT = np.tile(fake_gates()[:1], (12, 1))


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (fake_page(CONSTANT), "No gate depends on the input"),
        (replace(fake_page(), embedding=None), "Images in order of their class"),
        (fake_page(fake_gates()[:1]), "1 image ·"),
        (fake_page(fake_gates()[:2]), "2 images ·"),
        (replace(fake_page(), embedding=np.zeros((IMAGES, 2))), "60 images"),
        (replace(fake_page(), **BARE), "60 images"),
        (replace(fake_page(), labels=None), "60 images · 27 gates"),
    ],
    ids=["constant", "grid", "one", "two", "one place", "bare", "no labels"],
)
@pytest.mark.slow
def test_little_to_show(visit: Visit, tmp_path: Path, page: Page, says: str) -> None:
    visit.wrong.clear()
    write_page(page, tmp_path / "page.html")
    visit.open(tmp_path / "page.html")
    assert says in visit.text("main")
    if page.labels is not None:
        visit.tab.select_option("#class", "0")
    assert "NaN" not in visit.text("body")
    assert "undefined" not in visit.text("body")
    assert visit.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 1000])
def test_one_class_and_a_thousand(visit: Visit, tmp_path: Path, classes: int) -> None:
    visit.wrong.clear()
    names = tuple(f"{n}: {'very long name ' * 30}" for n in range(classes))
    labels = np.arange(IMAGES) * 16 % classes
    alike = np.random.default_rng(3).random((classes, classes))
    np.fill_diagonal(alike, 2)
    page = replace(fake_page(), classes=names, labels=labels, predictions=labels, similarity=alike)
    write_page(page, tmp_path / "page.html")
    visit.open(tmp_path / "page.html")
    assert visit.tab.locator("#class option").count() == classes + 1
    visit.tab.select_option("#class", str(labels[3]))
    own = fake_gates()[labels == labels[3]]
    assert visit.drawn("fig-layers")[1]["y"][0] == pytest.approx(100 * own[:, :5].mean(), abs=1e-4)
    if classes > 60:
        ranked = [n for n in np.argsort(-alike[labels[3]], kind="stable") if n != labels[3]]
        nearest = visit.drawn("fig-similarity")[0]["x"]
        assert nearest == pytest.approx(alike[labels[3], ranked[:20]])
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert visit.tab.evaluate(wide) <= 0
    assert visit.wrong == []


def test_rates_of_other_images_are_what_single_images_are_compared_with(
    visit: Visit, tmp_path: Path
) -> None:
    visit.wrong.clear()
    rates = np.linspace(0, 1, sum(WIDTHS))
    gates = fake_gates()[:3]
    page = replace(
        fake_page(gates), labels=None, predictions=np.array([2, 1, 2]), rates=rates[None],
        rated=np.array([2]), names=("/home/a.png", "b.png", "c.png"), mutual_information=None,
        macs=None,
    )  # fmt: skip
    write_page(page, tmp_path / "page.html")
    visit.open(tmp_path / "page.html")
    away = np.abs(gates[0] - rates).sum()
    assert f"A is Δ {away:.1f} gates from the mean of {NAMES[2][:23]}" in visit.text("#pair-about")
    assert "B is" not in visit.text("#pair-about")
    assert "/home/a.png" in visit.text("#heads")
    assert not visit.tab.is_visible("#layers")
    assert visit.wrong == []


def test_some_of_many_images_have_their_own_numbers(visit: Visit, tmp_path: Path) -> None:
    visit.wrong.clear()
    numbers = 100 + 7 * np.arange(IMAGES)
    opening = np.arange(8)[:, None].repeat(sum(WIDTHS), axis=1)
    page = replace(
        fake_page(), numbers=numbers, drawn_from=50_000, shown=np.arange(20), opening=opening,
        closing=numbers[opening],
    )  # fmt: skip
    write_page(page, tmp_path / "page.html")
    visit.open(tmp_path / "page.html")
    assert visit.text("#facts") == (
        "60 of 50,000 images, drawn at random · 4 classes · 20 of 27 gates depend on the input · "
        "20.00 % of these wrongly classified"
    )
    field = NUMBER.format("A")
    assert visit.tab.input_value(field) == "100"
    for typed, image in (("142", 6), ("159", 8), ("9999", 59), ("0", 0)):
        visit.tab.fill(field, typed)
        visit.tab.press(field, "Enter")
        assert visit.tab.input_value(field) == str(numbers[image])
        assert f"image {numbers[image]}" in visit.text("#heads")
    visit.tab.focus("#strips")
    visit.tab.keyboard.press("Enter")
    # The places 0 … 7 are of images that are not on the page.
    assert visit.tab.locator("#opening span").all_inner_texts() == [*"01234567"]
    assert visit.tab.locator("#closing button").count() == 8
    assert visit.wrong == []


def test_bits_are_those_of_the_shown_gates() -> None:
    gates = fake_gates()
    arrays = page_arrays(fake_page())
    shown = np.flatnonzero((gates.sum(axis=0) > 0) & (gates.sum(axis=0) < IMAGES))
    assert arrays["shown"].tolist() == shown.tolist()
    found = np.unpackbits(arrays["bits"], axis=1, count=IMAGES).T
    assert np.array_equal(found, gates[arrays["order"]][:, shown])
    assert sorted(arrays["order"]) == list(range(IMAGES))


def test_nothing_in_the_file_names_another_place(tmp_path: Path) -> None:
    write_page(fake_page(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=[\"'](?!data:)", text)
    assert "</script><script>1" not in text
    assert "default-src 'none'" in text


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"labels is \(59,\), it must be \(60,\)"):
        replace(fake_page(), labels=fake_labels()[1:])
    with pytest.raises(ValueError, match="none of the 4 classes"):
        replace(fake_page(), predictions=fake_labels() + 1)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*page\.html"):
        write_page(fake_page(), tmp_path / "page.html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
