from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest

import volseg
from tests.made.evaluations import evaluation_of, scores_of, two_organs, write, write_cases
from volseg.cli.main import main
from volseg.evaluation.folder import evaluate_folder
from volseg.evaluation.summary import summarize
from volseg.io.description import read_description
from volseg.report.examples import Images, example_pictures, find_images
from volseg.report.html import render_report

EVIL = "<script>alert(1)</script>&\"'"
LABELS = {"liver": 1, "spleen": 2}


class Page(HTMLParser):
    """A parser that collects tags, URLs and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def rows(*dices: float) -> list:
    return [[scores_of(dice), scores_of(dice / 2)] for dice in dices]


def report_of(evaluation: object) -> str:
    return render_report(evaluation, summarize(evaluation, resamples=50), [])  # type: ignore[arg-type]


def test_names_are_escaped_everywhere() -> None:
    evaluation = evaluation_of({EVIL: rows(0.5, 0.7), "b": rows(0.6, 0.7)}, (EVIL, "spleen"))
    text = report_of(evaluation)
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "alert(1)</script>" not in text
    assert EVIL in page.text


def test_the_report_loads_no_external_files() -> None:
    text = report_of(evaluation_of({"a": rows(0.5, 0.7), "b": rows(0.6, 0.7)}, ("liver", "spleen")))
    page = Page(text)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert not re.findall(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_ids_of_the_plots_are_unique() -> None:
    text = report_of(evaluation_of({"a": rows(0.5, 0.7), "b": rows(0.6, 0.7)}, ("liver", "spleen")))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used
    assert used <= set(ids)


def test_the_report_shows_failed_cases() -> None:
    evaluation = evaluation_of({"a": [*rows(0.5), "the file is broken"]}, ("liver", "spleen"))
    text = Page(report_of(evaluation)).text
    assert "1 failed, excluded from all means: case_1" in text
    assert "failed: the file is broken" in text


@pytest.mark.parametrize("classes", [1, 30])
def test_plots_for_few_and_many_classes(classes: int) -> None:
    names = tuple(f"class {n}" for n in range(classes))
    made = {m: [[scores_of(0.9)] * classes, [scores_of(0.4, "missed", hd95=300.0)] * classes] for m in "ab"}
    assert Page(report_of(evaluation_of(made, names))).tags.count("svg") == 3 + 3
    assert "<svg" not in report_of(evaluation_of({"a": ["broken", "broken"]}, names))


def test_scans_are_found_in_all_layouts(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "other/a.nii", "labelsTr/a.nii.gz"):
        write(tmp_path / name, two_organs())
    dataset = tmp_path / "dataset.json"
    dataset.write_text(json.dumps({"channel_names": {"0": "CT"}}))
    sibling = find_images(None, read_description(dataset), tmp_path / "labelsTr")
    assert (sibling.files["a"].name, sibling.modality) == ("a_0000.nii.gz", "ct")
    assert find_images(tmp_path / "other", None, tmp_path / "labelsTr").files["a"].name == "a.nii"
    pairs = [{"image": "./other/a.nii", "label": "./labelsTr/a.nii.gz"}]
    dataset.write_text(json.dumps({"modality": {"0": "MRI"}, "training": pairs}))
    listed = find_images(None, read_description(dataset), tmp_path / "labelsTr")
    assert (listed.files["a"].name, listed.modality) == ("a.nii", "mri")
    assert find_images(None, None, tmp_path / "elsewhere").files == {}


def test_pictures_of_the_worst_median_and_best_case(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", dict.fromkeys("abcde", 0))
    pred = write_cases(tmp_path / "pred", {"a": 3, "b": 0, "c": 1, "d": 2})
    image = write(tmp_path / "images" / "b.nii.gz", np.arange(720, dtype=np.int16).reshape(6, 10, 12))
    wrong_grid = write(tmp_path / "images" / "c.nii.gz", np.ones((3, 3, 3), np.int16))
    evaluation = evaluate_folder(pred, ref, LABELS)
    pictures = example_pictures(evaluation, Images({"b": image, "c": wrong_grid}))
    assert [(p.rank, p.case) for p in pictures] == [("worst", "e"), ("median", "d"), ("best", "b")]
    assert all(p.source.startswith("data:image/png;base64,iVBOR") for p in pictures)
    one = example_pictures(evaluate_folder(pred, ref, LABELS, cases=["b"]), Images({}))
    assert [p.rank for p in one] == ["worst"]


def test_masks_and_scans_in_another_voxel_order_are_drawn_alike(tmp_path: Path) -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:4, 2:6, 3:7] = 1
    wrong = np.roll(labels, 1, axis=0)
    affine = np.diag([2.0, 1.5, 3.0, 1.0])
    pictures = []
    for order in ("RAS", "SRA", "LPI"):
        folder = tmp_path / order
        for name, values in (("ref", labels), ("pred", wrong), ("images", 10 * labels)):
            image = nibabel.Nifti1Image(values, affine)
            if name != "ref":
                target = nibabel.orientations.axcodes2ornt(order)
                image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), target))
            (folder / name).mkdir(parents=True, exist_ok=True)
            nibabel.save(image, folder / name / "a.nii.gz")
        evaluation = volseg.evaluate(folder / "pred", folder / "ref", labels={"organ": 1}).evaluation
        images = find_images(folder / "images", None, folder / "ref")
        pictures.append(example_pictures(evaluation, images)[0].png)
    assert pictures[0] == pictures[1] == pictures[2]


def test_the_command_writes_all_files_and_returns_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 0})
    good, bad = write_cases(tmp_path / "good", {"a": 0, "b": 1}), write_cases(tmp_path / "bad", {"a": 1})
    dataset = tmp_path / "dataset.json"
    dataset.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "spleen"}}))
    common = ["--ref", str(ref), "--dataset", str(dataset), "--out", str(tmp_path / "out")]
    assert main(["evaluate", "--pred", str(good), *common]) == 0
    printed = capsys.readouterr().out
    assert "| liver" in printed
    assert printed.rstrip().endswith("too narrow to rely on (liver: 2, spleen: 2).")
    names = {"cases.csv", "scores.json", "scores.md", "report.html", "good_worst.png", "good_best.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert main(["evaluate", "--pred", f"x={good}", "--pred", f"y={bad}", *common, "--nsd-tolerance", "liver=3"]) == 1
    assert "y b" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert summary["methods"]["y"]["n_missing"] == 1
    assert summary["settings"]["nsd_tolerance_mm"] == {"liver": 3.0, "spleen": 1.0}
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["b"], "val": ["a"]}))
    (tmp_path / "names.txt").write_text("a\n")
    for file in ("splits.json", "names.txt"):
        assert main(["evaluate", "--pred", str(bad), *common, "--cases", str(tmp_path / file)]) == 0
    assert main(["evaluate", "--pred", str(bad), *common, "--cases", str(dataset)]) == 2
    (bad / "a.nii.gz").write_bytes(b"")
    (bad / "b.nii.gz").write_bytes(b"")
    assert main(["evaluate", "--pred", str(bad), *common]) == 2
    assert main(["evaluate", "--pred", f"x={good}", "--pred", f"x={bad}", *common]) == 2
    assert main(["evaluate", "--pred", str(good), *common, "--nsd-tolerance", "wide"]) == 2


CHECK = """
<script>
window.addEventListener("load", () => {
  const errors = [];
  window.addEventListener("error", (event) => errors.push(String(event.message)));
  const table = document.getElementById("cases");
  const column = (n) => [...table.tBodies[0].rows].map((row) => row.cells[n].textContent.trim());
  const button = (n) => table.tHead.rows[0].cells[n].querySelector("button");
  const result = { before: column(2) };
  button(2).click();
  result.ascending = column(2);
  button(2).click();
  result.descending = column(2);
  result.sort = table.tHead.rows[0].cells[2].getAttribute("aria-sort");
  button(0).click();
  result.cases = column(0);
  result.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  result.requests = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:"));
  result.errors = errors;
  const out = document.createElement("pre");
  out.id = "result";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
});
</script>
"""


@pytest.mark.parametrize("width", [500, 1200])
def test_the_table_sorts_in_a_browser_without_errors_or_requests(tmp_path: Path, width: int) -> None:
    """Open the report in headless Chromium; an appended script clicks the headers and records the columns."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium in PATH")
    made = [*rows(0.9, 0.56, 1.0, 0.12), "the file is broken"]
    text = report_of(evaluation_of({"a": made}, ("liver", "spleen")))
    file = tmp_path / "report.html"
    file.write_text(text.replace("</body>", CHECK + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *options, profile, "--virtual-time-budget=3000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1])  # type: ignore[index]
    assert result["before"] == ["0.675", "0.420", "0.750", "0.090", "–"]
    assert result["ascending"] == ["0.090", "0.420", "0.675", "0.750", "–"]  # undefined scores stay last
    assert result["descending"] == ["0.750", "0.675", "0.420", "0.090", "–"]
    assert result["sort"] == "descending"
    assert result["cases"] == [f"case_{n}" for n in range(5)]
    assert result["requests"] == []
    assert result["errors"] == []
    assert result["wide"] <= 0  # the page does not scroll sideways
    assert "CONSOLE" not in done.stderr


@pytest.mark.data
@pytest.mark.parametrize(("task", "case"), [("Task04_Hippocampus", "hippocampus_001"), ("CHAOS_MR", "chaos_01")])
def test_pictures_of_real_scans(data_root: Path, tmp_path: Path, task: str, case: str) -> None:
    root = data_root / task
    label = nibabel.load(root / "labelsTr" / f"{case}.nii.gz")
    shifted = np.roll(np.asarray(label.dataobj), 2, axis=0)
    (tmp_path / "pred").mkdir()
    nibabel.save(nibabel.Nifti1Image(shifted, label.affine, label.header), tmp_path / "pred" / f"{case}.nii.gz")
    labels = json.loads((root / "dataset.json").read_text())["labels"]
    names = {name: int(value) for value, name in labels.items()}
    evaluation = evaluate_folder(tmp_path / "pred", root / "labelsTr", names, cases=[case])
    assert not evaluation.failed
    images = find_images(None, read_description(root / "dataset.json"), root / "labelsTr")
    assert images.modality == "mri"
    pictures = example_pictures(evaluation, images)
    assert len(pictures) == 1
    assert len(pictures[0].source) > 50_000
