"""Tables of labels; what is wrong in them is in tests/made/bad_inputs/probing.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from volseg.errors import DataError
from volseg.probing.labels import check_scans, read_labels


def table(folder: Path, *rows: str) -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def test_scans_are_their_own_patients(tmp_path: Path) -> None:
    labels = read_labels(table(tmp_path, "label;case;comment", "ill;a.nii.gz;", "well;b.1;"))

    assert [(each.case, each.label, each.patient, each.slice, each.row) for each in labels.samples] == [
        ("a", "ill", "a", None, 2),
        ("b.1", "well", "b.1", None, 3),
    ]
    assert labels.classes == ("ill", "well")
    assert not labels.of_slices
    assert labels.split_by is None


def test_slices_patients_and_folds(tmp_path: Path) -> None:
    rows = ("Case,Slice,Label,Patient_ID,Fold", "a,0,10,p,0.0", "a,1,9,p,0", "b,0,9,q,1.0")
    labels = read_labels(table(tmp_path, *rows))

    assert labels.of_slices
    assert labels.split_by == "fold"
    assert [(each.slice, each.patient, each.part) for each in labels.samples] == [
        (0, "p", "0"),
        (1, "p", "0"),
        (0, "q", "1"),
    ]
    assert labels.classes == ("9", "10")  # numbers in their order


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (("case,label,slice", "a,1,0", "a,2,0", "a,2,1"), ("rows repeat", "rows 2, 3: a, slice 0")),
        (("case,label", "a,1", "b,"), ("cells are empty", "row 3: label")),
        (("case,label", "a,1", "b,1"), ("all labels are the same", "1 in 2 rows")),
        (("case,label,fold", "a,1,0", "b,2,x"), ("column fold", "row 3: x", "whole numbers")),
        (("case,label,split", "a,1,train", "b,2,val"), ("column split", "row 3: val", "train or test")),
        (("case,label,slice", "a,1,-1", "b,2,1.5"), ("column slice", "row 2: -1", "row 3: 1.5")),
        (("case,label,fold,split", "a,1,0,train"), ("splits twice",)),
        (("case,labels", "a,1"), ("call the column labels label",)),
        (("case,label",), ("no row below",)),
        (("case,label,label", "a,1,2"), ("stand twice", "label")),
        (("case,label", "a,1,2", "b,2"), ("another length", "row 2: 3 columns")),
        (
            ("case,label", "a,1", "b,NA", "c,nan"),
            ("say that a value is missing", "row 3: label NA", "row 4: label nan"),
        ),
        (("case,label,patient", "a,1,p", "b,2,NaN"), ("say that a value is missing", "row 3: patient NaN")),
        (("case,label", "a,1", "b,01", "c,1.0", "d,0"), ("classes are spelt in several ways", "1, 01, 1.0", "one way")),
        (("case,label", "a,ill", "b,Ill", "c,well"), ("classes are spelt in several ways", "ill, Ill")),
        (("case,label,patient", "a,1,P7", "b,2,p7"), ("patients are spelt in several ways", "P7, p7")),
        (("case,label,patient", "a,1,007", "b,2,7"), ("patients are spelt in several ways", "007, 7")),
        (
            ("case,label,patient,fold", "a,1,p,0", "b,2,p,1"),
            ("patients are in several parts", "p: 0 (row 2), 1 (row 3)"),
        ),
        (
            ("case,label,patient,slice", "a,1,p,0", "a,2,q,1"),
            ("scans have several patients", "a: p (row 2), q (row 3)"),
        ),
    ],
)
def test_invalid_rows_are_listed(tmp_path: Path, rows: tuple[str, ...], texts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as raised:
        read_labels(table(tmp_path, *rows))
    for text in (*texts, "labels.csv"):
        assert text in str(raised.value)


def test_labels_and_scans_belong_together(tmp_path: Path) -> None:
    labels = read_labels(table(tmp_path, "case,label", "a,1", "b,2"))
    check_scans(labels, ["a", "b"], "scans")

    with pytest.raises(DataError, match="row 3: b"):
        check_scans(labels, ["a", "c"], "scans")
    with pytest.raises(DataError, match=r"have no label(.|\n)*c"):
        check_scans(labels, ["a", "b", "c"], "scans")


def test_numbers_that_differ_are_not_spellings_of_one(tmp_path: Path) -> None:
    rows = ("case,label,patient", "a,0,10", "b,-1,1", "c,1,100", "d,1.5,001x", "e,15,1x")
    assert len(read_labels(table(tmp_path, *rows)).classes) == 5
