from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from tests.made.datasets import case, measured, shape
from volseg.errors import OutputError
from volseg.planning.fingerprint import Fingerprint
from volseg.report.overview import check_picture_replaceable, draw_overview, write_overview


def data(classes: int = 3, channels: tuple[str, ...] = ("CT",), odd: int = 1, low: float = -1000) -> Fingerprint:
    names = ["a class with a rather long name", "kidney $1$", *(f"organ {n}" for n in range(classes))][:classes]
    cases = []
    for number in range(30):
        volumes = {name: replace(shape(), volume_ml=(k + 1) * (9 + number)) for k, name in enumerate(names)}
        scale = 5.0 if number < odd else 1.0
        one = case((100 + number, 120, 40), (0.8, 0.8, 2.5 * scale), volumes)
        ranges = tuple((low * scale**3, 300.0 * scale**4 + 5 * number) for _ in channels)
        cases.append(replace(one, id=f"case_{number:03}", ranges=ranges))
    return measured(*cases, channels=channels)


@pytest.mark.parametrize(
    "fingerprint",
    [
        data(),
        data(60, odd=0),
        data(2, ("T1", "T2 with a long name", "FLAIR"), 7),
        data(low=0),
        data(low=3),
    ],
    ids=["3", "60", "MRI", "zero", "positive"],
)
def test_texts_do_not_overlap_and_lie_inside(fingerprint: Fingerprint) -> None:
    figure = draw_overview(fingerprint)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts: list[Text] = [*figure.texts]
    for axes in figure.axes:
        texts += [axes.xaxis.label, *axes.get_yticklabels()]
        low, high = axes.get_xlim()  # numbers beyond are not drawn
        texts += [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    drawn = [(one.get_text(), one.get_window_extent(canvas.get_renderer())) for one in texts if one.get_text()]
    width, height = figure.bbox.width, figure.bbox.height
    assert [text for text, box in drawn if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height] == []
    assert len(drawn) > 20
    assert [(a, b) for (a, one), (b, other) in combinations(drawn, 2) if one.overlaps(other)] == []


def test_cases_far_from_the_others_are_named() -> None:
    texts = [one.get_text() for one in draw_overview(data()).texts]
    assert any("case_000 (12.5 mm)" in text for text in texts)
    assert "No case is far from the others." in [one.get_text() for one in draw_overview(data(odd=0)).texts]


def test_the_picture_is_small_and_replaces_only_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    check_picture_replaceable(file)
    write_overview(file, data())
    assert file.stat().st_size < 150_000
    check_picture_replaceable(file)
    file.write_bytes(b"\x89PNG of somebody else")
    with pytest.raises(OutputError, match="no picture of a plan"):
        check_picture_replaceable(file)
