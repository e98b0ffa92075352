"""Things that users get wrong. The tests try each, and `docs/errors.md` shows the message of each."""

from __future__ import annotations

from tests.made.bad_inputs.cases import BadInput
from tests.made.bad_inputs.datasets import DATASETS, SPLITS
from tests.made.bad_inputs.dicom import DICOM
from tests.made.bad_inputs.evaluation import EVALUATION
from tests.made.bad_inputs.models import MODELS
from tests.made.bad_inputs.outputs import OUTPUTS
from tests.made.bad_inputs.prediction import PREDICTION
from tests.made.bad_inputs.probing import PROBING
from tests.made.bad_inputs.scans import MASKS, OTHER_FORMATS, SCANS
from tests.made.bad_inputs.settings import SETTINGS

BAD_INPUTS: dict[str, tuple[BadInput, ...]] = {
    "Scans": SCANS,
    "NRRD, MetaImage, FreeSurfer": OTHER_FORMATS,
    "DICOM": DICOM,
    "Masks": MASKS,
    "Data sets": DATASETS,
    "Plans and splits": SPLITS,
    "Settings": SETTINGS,
    "Model and weight files": MODELS,
    "Prediction": PREDICTION,
    "Evaluation": EVALUATION,
    "Features and probe": PROBING,
    "Output folders": OUTPUTS,
}
"""Section of the page -> its cases."""
