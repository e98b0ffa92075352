"""Parts of `faults.py`: trials with kills, damaged files, full disks and processes at the same time."""
