"""Cross-validation: out-of-fold scores, the postprocessing that it chooses, and its ensemble on cases of no fold.

    python benchmarks/folds.py --data DIR train.max_minutes=10 device=cpu
    python benchmarks/folds.py --data DIR --test-every 4 train.max_steps=1000

Every fifth case (``--test-every``) is left out of the data set that ``volseg crossval`` is given. Each fold's model and
the ensemble predict these cases, and one evaluation compares them, paired by case. All is done by the commands that a
user would type. The benchmark can be stopped and repeated.

Writes ``<data set>`` ``.md``, ``.json`` and ``.csv`` (test cases).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from shared.arguments import add_runs, make_parser
from shared.record import Record, origin, write_json, write_page
from shared.text import origin_text, say
from volseg.conversion import write_nnunet
from volseg.io.datasets import Dataset, read_dataset
from volseg.metrics.table import HEADLINE
from volseg.report.tables import aligned_table, p_text, with_interval

ENSEMBLE = "ensemble"


def main() -> int:
    """Cross-validate, predict the test cases, and write the page."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    dataset = read_dataset(args.data)
    test = dataset.cases[:: args.test_every]
    name = dataset.name.lower()
    work = args.runs / name
    crossval, scores = work / "crossval", work / "scores"
    if not (work / "data").exists():
        rest = tuple(case for case in dataset.cases if case not in test)
        write_nnunet(replace(dataset, cases=rest, unlabelled=()), work / "data")
    _volseg("crossval", "--config", args.config, f"data.root={work / 'data'}", f"output={crossval}", *args.settings)
    methods = _predict(dataset, [case.id for case in test], crossval, work)
    masks = [text for method, folder in methods.items() for text in ("--pred", f"{method}={folder}")]
    cases = work / "test_cases.txt"
    _volseg("evaluate", *masks, "--dataset", args.data / "dataset.json", "--cases", cases, "--out", scores)
    record = {
        "dataset": dataset.name,
        **origin(),
        "training_cases": len(dataset.cases) - len(test),
        "test_cases": len(test),
        "postprocessing": json.loads((crossval / "postprocessing.json").read_text(encoding="utf-8")),
        "folds": (crossval / "validation" / "folds.md").read_text(encoding="utf-8"),
        **_test_scores(json.loads((scores / "scores.json").read_text(encoding="utf-8"))),
    }
    write_json(args.out / f"{name}.json", record)
    shutil.copyfile(scores / "cases.csv", args.out / f"{name}.csv")
    write_page(args.out / f"{name}.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "folds")
    parser.add_argument("--data", type=Path, required=True, help="data set folder with a dataset.json")
    parser.add_argument("--test-every", type=int, default=5, help="every n-th case is left out (%(default)s)")
    add_runs(parser, "folds")
    return parser.parse_args()


def _predict(dataset: Dataset, test: list[str], crossval: Path, work: Path) -> dict[str, Path]:
    """Predict the test cases by the ensemble and by each fold; return the folders of the masks."""
    scans = {case.id: ",".join(str(path.resolve()) for path in case.images) for case in dataset.cases}
    (work / "test_scans.txt").write_text("".join(f"{scans[case]}\n" for case in test), encoding="utf-8")
    (work / "test_cases.txt").write_text("".join(f"{case}\n" for case in test), encoding="utf-8")
    members = json.loads((crossval / "crossval.json").read_text(encoding="utf-8"))["members"]
    models = {ENSEMBLE: crossval} | {f"fold_{number}": crossval / f"fold_{number}" for number in members}
    for method, model in models.items():
        _volseg("predict", "--model", model, "--input", work / "test_scans.txt", "--output", work / "masks" / method)
    return {method: work / "masks" / method for method in models}


def _test_scores(summary: Record) -> Record:
    """Return the means of each method, and the differences of the ensemble to each fold."""
    comparisons = [entry for entry in summary["comparisons"] if entry["a"] == ENSEMBLE]
    return {
        "methods": {name: method["headline"] for name, method in summary["methods"].items()},
        "differences": {f"{one['b']} {one['metric']}": one["mean_over_classes"] for one in comparisons},
    }


def _volseg(*arguments: str | Path) -> None:
    """Run a command of volseg; end with it if it fails."""
    command = [sys.executable, "-m", "volseg", *map(str, arguments)]
    say(" ".join(command))
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit("failed, see above; the same command continues")


def markdown(record: Record) -> str:
    """Return the page: out-of-fold scores, the choice of postprocessing, and the scores of the test cases."""
    choice = record["postprocessing"]
    chosen = json.dumps(choice["chosen"]) if any(choice["chosen"].values()) else "nothing"
    header = ["method", *(metric.column_title for metric in HEADLINE), "ensemble minus it: Dice", "p"]
    rows = [header]
    for name, scores in record["methods"].items():
        cells = [with_interval(scores[metric.name], metric.digits) for metric in HEADLINE]
        paired = record["differences"].get(f"{name} dice")
        difference = "" if paired is None else with_interval({"mean": paired["mean_difference"], **paired}, 3)
        rows.append([name, *cells, difference, "" if paired is None else p_text(paired["wilcoxon_p"])])
    return (
        f"# Cross-validation: {record['dataset']}\n\n## Out of fold\n\n{record['folds'].strip()}\n\n"
        f"Postprocessing: {len(choice['tried'])} choices of class and step tried on {choice['cases']} cases; chosen: "
        f"`{chosen}`. It is scored on the cases that chose it.\n\n"
        f"## {record['test_cases']} cases of no fold\n\n{aligned_table(rows)}\n\n"
        "Means over cases, then over classes, with 95% bootstrap intervals over cases; differences are paired by case, "
        f"p is of Wilcoxon's signed-rank test. Random weights; {record['training_cases']} cases in the folds. "
        f"{origin_text(record)}: `{' '.join(record['command'])}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
