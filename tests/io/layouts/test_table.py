"""A CSV with a row per case."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.io.layouts.test_layouts import describe, refused, touch
from tests.made.dicom_files import stored_values, write_series
from volseg import api
from volseg.io.checks import load_case
from volseg.io.datasets import read_dataset
from volseg.io.volumes import read_grid, read_volume, write_map


def table(root: Path, text: str, **content: object) -> Path:
    describe(root, **content)
    file = root / "cases.csv"
    file.write_bytes(text.encode("utf-8"))
    return file


def test_columns(tmp_path: Path) -> None:
    """Headers in any capitalisation; quoted paths; empty lines; a byte-order mark; a scan without a label."""
    touch(tmp_path, "a/x, 1.nii", "b/x, 1.nii", "c/y.nii", "l.nii")
    text = (
        "\ufeffID,Image,Label,Patient,FOLD,age\r\n"
        ',"a/x, 1.nii",l.nii,p1,2,70\r\n,"b/x, 1.nii",l.nii,p1,,\r\n\r\nsee,c/y.nii,,,,\r\n'
    )
    dataset = read_dataset(table(tmp_path, text, modality="CT", name="Mine"))
    cases = [(case.id, case.images, case.label, case.patient, case.fold) for case in dataset.cases]
    label = tmp_path / "l.nii"
    assert cases == [
        ("a_x, 1", (tmp_path / "a/x, 1.nii",), label, "p1", 2),
        ("b_x, 1", (tmp_path / "b/x, 1.nii",), label, "p1", None),
    ]
    assert [case.id for case in dataset.unlabelled] == ["see"]
    assert (dataset.name, dataset.channels, dataset.root) == ("Mine", ("CT",), tmp_path / "cases.csv")


def test_columns_of_channels(tmp_path: Path) -> None:
    touch(tmp_path, "f.nii", "t.nii", "l.nii")
    numbered = table(
        tmp_path / "n", "image_1\tlabel\timage_0\n../f.nii\t../l.nii\t../t.nii\n", modality=["T1", "FLAIR"]
    )
    named = table(tmp_path / "m", "note;FLAIR;T1;label\nx;../f.nii;../t.nii;../l.nii\n")
    ordered = table(tmp_path / "o", "note,FLAIR,T1,label\nx,../f.nii,../t.nii,../l.nii\n", modality=["t1", "flair"])
    for file, names, channels in (
        (numbered, ["t.nii", "f.nii"], ("T1", "FLAIR")),
        (named, ["f.nii", "t.nii"], ("FLAIR", "T1")),
        (ordered, ["t.nii", "f.nii"], ("t1", "flair")),
    ):
        dataset = read_dataset(file)
        assert [path.name for path in dataset.cases[0].images] == names
        assert dataset.channels == channels


def test_a_column_of_masks_is_no_channel(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "m.nii", "l.nii")
    text = "T1,segmentation,label\na.nii,m.nii,l.nii\n"
    refused(table(tmp_path, text), "cases.csv", "segmentation among T1, segmentation")
    assert read_dataset(table(tmp_path, text, channel_names=["T1"])).channels == ("T1",)
    assert read_dataset(table(tmp_path, text, channel_names=["segmentation", "T1"])).channels == ("segmentation", "T1")
    no_scans = "T1,segmentation,label\na.nii,by hand,l.nii\n"
    assert read_dataset(table(tmp_path, no_scans)).channels == ("T1",)


def test_one_label_of_several_images(tmp_path: Path) -> None:
    """Registered scans of one patient share a label rightly."""
    touch(tmp_path, "a.nii", "b.nii", "c.nii", "l.nii", "m.nii")
    rows = "a.nii,l.nii,{}\nb.nii,l.nii,{}\nc.nii,m.nii,p3\n"
    findings = read_dataset(table(tmp_path, "CT,label,patient\n" + rows.format("", ""))).findings
    assert [(one.kind, one.severity, one.message) for one in findings] == [
        ("shared-label", "warning", "the label of 2 cases: a, b")
    ]
    assert not read_dataset(table(tmp_path, "CT,label,patient\n" + rows.format("p1", "p1"))).findings
    assert read_dataset(table(tmp_path, "CT,label,patient\n" + rows.format("p1", "p2"))).findings


def test_one_file_for_two_channels_or_for_image_and_label(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "l.nii")
    (tmp_path / "again.nii").symlink_to(tmp_path / "a.nii")
    file = table(tmp_path, "T1,T2,label\na.nii,again.nii,l.nii\n")
    refused(file, "a file is given twice", "a.nii", "channel 0 and channel 1")
    file = table(tmp_path, "T1,label\na.nii,a.nii\n")
    refused(file, "channel 0 and the label")
    assert [(one.kind, one.message) for one in read_dataset(file, strict=False).findings] == [
        ("same-file", "a: channel 0 and the label")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no rows", "an empty file", "label"]),
        ("image,label\n", ["no rows"]),
        ("image,label,label\ni.nii,l.nii,l.nii\n", ["stand twice", "label"]),
        ("image,label\ni.nii\n", ["row 2: 1 column; the headers have 2"]),
        ("image,label\n,l.nii\n", ["row 2: no file in image"]),
        (f"image,label,fold\ni.nii,l.nii,{'9' * 5000}\n", ["row 2: the fold", "is not a whole number"]),
        ("image_0,image_2,label\ni.nii,i.nii,l.nii\n", ["columns of images are missing", "image_0, image_2"]),
        ("scan,label\ni.png,l.nii\n", ["no column of images", "scan, label"]),
        ("image,label,id\ni.nii,l.nii,../x\n", ["cannot be file names", "../x"]),
        ("image,label\ni.nii,l.nii\ni.nii,l.nii\n", ["same case name", "i"]),
        ('image,label\n"i.nii,l.nii\n', ["cannot be read", "UTF-8"]),
        ("image,label\ni.nii,\n", ["no labelled cases"]),
        ("image,Mask\ni.nii,l.nii\n", ["hint: call the column Mask label"]),
        ("T1,image,label\nl.nii,i.nii,l.nii\n", ["hold scans, too", "T1 beside image"]),
        ("T1,image_0,label\nl.nii,i.nii,l.nii\n", ["T1 beside image_0"]),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    touch(tmp_path, "i.nii", "l.nii")
    refused(table(tmp_path, text, modality="CT"), *words)


@pytest.mark.parametrize("name", ["Patient_ID", "subject", "subject_id", "patients", "participant-id", "PatientID"])
def test_columns_of_patients_and_folds_in_other_words(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.nii", "b.nii", "l.nii", "m.nii")
    text = f"image,label,{name},patient_age,Folds\na.nii,l.nii,p1,70,0.0\nb.nii,m.nii,p2,71,\n"
    cases = read_dataset(table(tmp_path, text, modality="CT")).cases
    assert [(case.patient, case.fold) for case in cases] == [("p1", 0), ("p2", None)]


def test_the_column_patient_counts_where_others_could_mean_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "l.nii")
    (case,) = read_dataset(table(tmp_path, "image,label,subject,patient\na.nii,l.nii,s,p\n", modality="CT")).cases
    assert case.patient == "p"


def test_a_misspelt_column_is_a_warning_and_others_are_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "l.nii")
    others = "age,patient_age,fold_0,folder,inpatient,scanner,manual_path,source\n"
    row = "a.nii,l.nii,p,1,2,train,x,1,GE,l.nii,/archive/a.nii\n"
    (finding,) = read_dataset(table(tmp_path, f"image,label,patiant,{others}{row}", modality="CT")).findings
    assert (finding.kind, finding.severity) == ("not-read", "warning")
    assert finding.message == 'the column "patiant"; did you mean "patient"?'


def test_all_faults_of_a_table_are_reported_together(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "l.nii", "m.nii", "n.nii")
    rows = ["a,a.nii,l.nii,x", "b,gone.nii,m.nii,0", "c,,m.nii,1", "a,b.nii,n.nii,1", "e,a.nii"]
    file = table(tmp_path, "id,image,label,fold\n" + "\n".join(rows))
    words = ["5 errors", "row 2: the fold", "b: does not exist", "row 4: no file in image", "a: row 2, row 5"]
    refused(file, *words, "row 6: 2 columns")
    assert {one.kind for one in read_dataset(file, strict=False).findings} == {"row", "missing-file", "case-name"}


def test_backslashes_between_folders(tmp_path: Path) -> None:
    touch(tmp_path, "im/a.nii", "lab/a.nii", "lab/b\\c.nii")
    text = "image,label\nim\\a.nii,lab\\a.nii\n"
    (case,) = read_dataset(table(tmp_path, text, modality="CT")).cases
    assert (case.id, case.images, case.label) == ("a", (tmp_path / "im/a.nii",), tmp_path / "lab/a.nii")
    text = "image,label\nim/a.nii,lab/b\\c.nii\n"  # a name that holds one
    assert read_dataset(table(tmp_path, text, modality="CT")).cases[0].label == tmp_path / "lab/b\\c.nii"


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path / "cases.csv", "cannot be read", "cases.csv")


@pytest.mark.parametrize("column", ["image", "CT"])
def test_dicom_series(column: str, tmp_path: Path) -> None:
    """A folder, a zip and a file of a series, with labels on their grids, through the check of a case."""
    series = write_series(tmp_path / "a" / "series")[0].parent
    second = write_series(tmp_path / "b", stored_values(seed=1), suffix="")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for path in second:
            archive.write(path, path.name)
    write_map(tmp_path / "l.nii.gz", np.ones((6, 4, 5), np.uint8), read_grid(series))
    rows = ("a/series", second[0].relative_to(tmp_path).as_posix(), "c.zip")
    file = table(tmp_path, f"{column},label\n" + "".join(f"{row},l.nii.gz\n" for row in rows), modality=["CT"])
    dataset = read_dataset(file)
    assert dataset.labels == {"background": 0, "organ": 1}
    assert sorted(case.id for case in dataset.cases) == [second[0].name, "c", "series"]
    for case in dataset.cases:
        volume, mask = load_case(case, dataset.channels, dataset.label_map)
        assert volume.grid.shape == mask.labels.shape == (6, 4, 5)
    copy = api.convert(file, tmp_path / "out")
    assert [len(case.images) for case in copy.cases] == [1, 1, 1]
    converted = read_volume(next(case.images[0] for case in copy.cases if case.id == "series"))
    assert np.array_equal(converted.data, read_volume(series).data)


def test_dicom_series_in_other_layouts(tmp_path: Path) -> None:
    """Folders and zips of series stand for files: plain folders, a folder per case, and lists of ``dataset.json``."""
    label = np.ones((6, 4, 5), np.uint8)
    for number, name in enumerate(("p1", "p2")):
        series = write_series(tmp_path / "plain" / "images" / name, stored_values(seed=number))[0].parent
        write_map(tmp_path / "plain" / "labels" / f"{name}.nii.gz", label, read_grid(series))
        shutil.copytree(series, tmp_path / "cases" / name / "CT")
        shutil.copy(tmp_path / "plain" / "labels" / f"{name}.nii.gz", tmp_path / "cases" / name / "seg.nii.gz")
    pairs = [{"image": f"../cases/{name}/CT", "label": f"../cases/{name}/seg.nii.gz"} for name in ("p1", "p2")]
    describe(tmp_path / "listed", training=pairs, labels={"background": 0, "all": 1}, modality={"0": "CT"})
    for layout in ("plain", "cases", "listed"):
        dataset = read_dataset(tmp_path / layout)
        assert [case.id for case in dataset.cases] == ["p1", "p2"]
        for number, case in enumerate(dataset.cases):
            volume, _ = load_case(case, dataset.channels, dataset.label_map)
            assert np.array_equal(volume.data[0], stored_values(seed=number).T)
