"""Segment every scan of a folder, and print what became of each.

python examples/predict_folder.py MODEL SCANS MASKS [FORMAT]

MODEL is a run folder or a model file. FORMAT is that of the masks, such as seg.nrrd; by default that of each scan.
"""

from __future__ import annotations

import sys

import volseg


def main(model: str, scans: str, masks: str, mask_format: str | None = None) -> int:
    """Write the masks; a scan that fails does not stop the others."""
    summary = volseg.predict(model, scans, masks, mask_format=mask_format)
    for record in summary.results:
        print(f"{record.case}: {record.status} {record.error or ', '.join(record.outputs)}")
    return 1 if summary.count("failed") else 0


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
