"""BIDS data sets with labels in derivatives."""

from __future__ import annotations

from pathlib import Path

from tests.io.layouts.test_layouts import describe, images_of, refused, touch
from volseg.io.datasets import read_dataset


def labels(root: Path, kind: str, *sessions: str, pipeline: str = "manual") -> None:
    for session in sessions:
        touch(root, f"derivatives/{pipeline}/{session.replace('_', '/')}/anat/{session}_{kind}.nii.gz")


def scans(root: Path, kind: str, *sessions: str) -> None:
    touch(root, *(f"{session.replace('_', '/')}/anat/{session}_{kind}.nii.gz" for session in sessions))


def test_sessions_are_cases_and_subjects_are_patients(tmp_path: Path) -> None:
    sessions = ("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1")
    scans(tmp_path, "T1w", *sessions, "sub-03")
    scans(tmp_path, "acq-high_T2w", *sessions)
    scans(tmp_path, "FLAIR", sessions[0])
    touch(tmp_path, "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz", "participants.tsv")
    labels(tmp_path, "dseg", *sessions)
    labels(tmp_path, "desc-brain_mask", *sessions)
    labels(tmp_path, "space-MNI152_dseg", *sessions)
    dataset = read_dataset(describe(tmp_path))
    assert [(case.id, case.patient) for case in dataset.cases] == [(name, name[:6]) for name in sessions]
    assert dataset.channels == ("T1w", "acq-high_T2w")
    assert dataset.cases[2].images[0] == tmp_path / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz"
    assert dataset.cases[2].label.name == "sub-02_ses-1_dseg.nii.gz"
    assert [(finding.kind, finding.message) for finding in dataset.findings] == [
        ("passed-over", "labels in another space than the scans, not read: manual/space-MNI152_dseg"),
        ("unlabelled", "sub-03 has no label"),
    ]


def test_the_description_chooses_scans(tmp_path: Path) -> None:
    scans(tmp_path, "T1w", "sub-1")
    scans(tmp_path, "FLAIR", "sub-1")
    labels(tmp_path, "space-T1w_dseg", "sub-1", "sub-9")
    assert images_of(describe(tmp_path, channel_names=["T1w"])) == {"sub-1": ["sub-1_T1w.nii.gz"]}


def test_names_of_classes(tmp_path: Path) -> None:
    scans(tmp_path, "T1w", "sub-1")
    labels(tmp_path, "label-lesion_mask", "sub-1")
    assert read_dataset_of(tmp_path).labels == {"background": 0, "lesion": 1}
    table = tmp_path / "derivatives/manual/sub-1/anat/sub-1_label-lesion_mask.tsv"
    table.write_text("index\tname\tcolor\n0\tnothing\t#000\n4\tedema\t#fff\n2\tcore\t#aaa\n", encoding="utf-8")
    assert read_dataset_of(tmp_path).labels == {"nothing": 0, "core": 2, "edema": 4}
    for content in ("index\tlabel\n1\tcore\n", "index\tname\none\tcore\n", "name\tindex\n"):
        table.write_text(content, encoding="utf-8")
        refused(tmp_path, table.name)


def read_dataset_of(root: Path):
    """Read a folder whose scans are empty files: the channels are stated, the labels are not."""
    (root / "dataset.json").write_text('{"modality": {"0": "T1w"}}')
    return read_dataset(root)


def test_what_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "two"
    scans(root, "T1w", "sub-1", "sub-2")
    labels(root, "dseg", "sub-1", "sub-2")
    labels(root, "dseg", "sub-1", pipeline="freesurfer")
    refused(root, "several kinds of labels", "freesurfer/dseg (1 scan)", "manual/dseg (2 scans)", "CSV")
    scans(tmp_path / "no", "T1w", "sub-1")
    labels(tmp_path / "no", "probseg", "sub-1")
    refused(tmp_path / "no", "no scan of this BIDS data set has a label", "derivatives/")
    root = tmp_path / "mixed"
    scans(root, "T1w", "sub-1")
    scans(root, "T2w", "sub-2")
    labels(root, "dseg", "sub-1", "sub-2")
    refused(root, "no kind of scan", "sub-1: T1w", "sub-2: T2w", "CSV")
    touch(tmp_path / "twice", "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T1w.nii.gz")
    labels(tmp_path / "twice", "dseg", "sub-1")
    refused(tmp_path / "twice", "same name", "sub-1_T1w.nii.gz")
