"""Codes of classes in DICOM: SNOMED CT for common organs and findings, a private scheme for other names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from volseg.io.labels import plain_name

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99VOLSEG"
LONGEST_TEXT = 64
"""Most characters of a name in DICOM (value representation LO)."""
STRUCTURES = (
    *("Spleen", "Kidney", "Liver", "Stomach", "Pancreas", "Duodenum", "Esophagus", "Gallbladder", "AdrenalGland"),
    *("Colon", "SmallIntestine", "Rectum", "Bladder", "Ureter", "Prostate", "SeminalVesicle", "Uterus", "Ovary"),
    *("Aorta", "InferiorVenaCava", "SuperiorVenaCava", "PortalVein", "SplenicVein", "HepaticVein", "CarotidArtery"),
    *("PulmonaryArtery", "PulmonaryVein", "Heart", "LeftVentricle", "RightVentricle", "LeftAtrium", "RightAtrium"),
    *("Lung", "Trachea", "Bronchus", "Larynx", "Pharynx", "Thymus", "Thyroid", "ParotidGland", "SubmandibularGland"),
    *("Brain", "BrainStem", "Cerebellum", "Hippocampus", "Amygdala", "Thalamus", "Putamen", "CaudateNucleus"),
    *("GlobusPallidus", "GrayMatter", "WhiteMatter", "CerebrospinalFluid", "SpinalCord", "OpticNerve", "OpticChiasm"),
    *("Pituitary", "Eye", "Lens", "Tongue", "Breast", "LymphNode", "Skull", "Mandible", "Spine", "Vertebra", "Sacrum"),
    *("Sternum", "Rib", "Clavicle", "Scapula", "Humerus", "Femur", "Tibia", "Fibula", "Patella"),
)
"""Keywords of pydicom's dictionary of SNOMED CT for anatomical structures."""
FINDINGS = ("Tumor", "Neoplasm", "Cyst", "Lesion", "Edema", "Necrosis", "Hemorrhage", "Nodule", "Mass")
"""Keywords of the same dictionary for morphologically abnormal structures."""
OTHER_NAMES = {
    "oesophagus": "Esophagus",
    "urinarybladder": "Bladder",
    "thyroidgland": "Thyroid",
    "postcava": "InferiorVenaCava",
    "smallbowel": "SmallIntestine",
    "caudate": "CaudateNucleus",
    "pallidum": "GlobusPallidus",
    "tumour": "Tumor",
    "oedema": "Edema",
}
SIDES = {"left": "Left", "right": "Right", "l": "Left", "r": "Right"}


@dataclass(frozen=True)
class ClassCodes:
    """Codes of a class.

    Attributes:
        category: Anatomical or morphologically abnormal structure.
        kind: What it is.
        side: Left or right, where the name says so and the code of the structure does not.
    """

    category: Code
    kind: Code
    side: Code | None = None


def class_codes(name: str, value: int) -> ClassCodes:
    """Return the codes of a class by its name, such as ``kidney_left``, ``Left Kidney`` or ``kidneys``.

    Args:
        name: The class.
        value: Its label value, which is the code in the private scheme where the name is in no table here.
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    keywords = {keyword.lower(): keyword for keyword in (*STRUCTURES, *FINDINGS)} | OTHER_NAMES
    words = plain_name(name).split("_")
    sides = [SIDES[word] for word in words if word in SIDES]
    whole, without_side = "".join(words), "".join(word for word in words if word not in SIDES)
    for compact, side in ((whole, None), (without_side, sides[0] if len(sides) == 1 else None)):
        keyword = keywords.get(compact) or keywords.get(compact.removesuffix("s"))
        if keyword is not None:
            category = codes.SCT.MorphologicallyAbnormalStructure if keyword in FINDINGS else _anatomical()
            return ClassCodes(category, getattr(codes.SCT, keyword), getattr(codes.SCT, side) if side else None)
    return ClassCodes(_anatomical(), Code(str(value), PRIVATE_SCHEME, dicom_text(name)))


def dicom_text(text: str) -> str:
    """Return text that DICOM can hold as one value: without backslashes, at most 64 characters."""
    return text.replace("\\", "/")[:LONGEST_TEXT]


def _anatomical() -> Code:
    from pydicom.sr.codedict import codes

    code: Code = codes.SCT.AnatomicalStructure
    return code
