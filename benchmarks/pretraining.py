"""Few-shot Dice of a pretrained encoder: frozen, LoRA and full, against random weights and no transformer.

    python benchmarks/pretraining.py --data DIR --minutes 60 --steps 1000 --shots 1,5,25% --seeds 0,1,2
    python benchmarks/pretraining.py --data DIR --pretrain-steps 2 --steps 2 --shots 1 --seeds 0 train.batch_size=1
    python benchmarks/pretraining.py --data DIR --encoder medsam_lite:medsam_lite --adaptations frozen --steps 200 \\
        --stored-volumes 40

One encoder is pretrained by ``tools/pretrain.py`` on all training scans of the fold, without their labels; the held-out
cases took no part. Or its weights are given with ``--encoder``. The arms of a seed train on the same cases with the
same initial weights elsewhere. The control is the network without a transformer. Every run is a process of its own; a
finished run is kept and an interrupted one resumes, so the command can be stopped and repeated.

With ``--stored-volumes N`` frozen encoders and the control train on about N stored volumes, the training cases and
augmented variants of them, and their tokens (``data.cache_tokens``).

Writes ``<data set>_<encoder>_<steps>_steps`` ``.md``, ``.json``, ``.csv`` (per case) and ``.png``, the log of the
pretraining, ``..._pretraining.jsonl``, with its picture, ``..._pretraining.png``, and principal components of the
tokens of a held-out scan, ``..._tokens.png`` and, with random weights, ``..._tokens_random.png``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from shared.arguments import add_runs, check_choices, integers, make_parser, words
from shared.record import ROOT
from shared.text import say
from training.adaptation_grid import Encoder, count_of
from training.few_shot_tables import Comparison, write_tables
from training.runs import finished_run, settings_of_steps
from volseg.config.schema import DataConfig
from volseg.data.split_rules import choose_split
from volseg.io.datasets import read_dataset

ADAPTATIONS = ("frozen", "lora", "full")
RANDOM = {"frozen": "random frozen", "lora": "random full", "full": "random full"}
"""Random weights that an adaptation is compared with."""
CONTROL = "identity"


def main() -> int:
    """Pretrain, train the runs that are not finished, and write the tables after each group of arms."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    dataset = read_dataset(args.data)
    split = choose_split(dataset, DataConfig(root=args.data, fold=args.fold), seed=0)
    available = len(split["train"])
    length = f"{args.pretrain_steps} steps" if args.pretrain_steps else f"{args.minutes:g} minutes"
    label = args.encoder.label if args.encoder else f"pretrained {length}"
    name = f"{dataset.name}_{label}_{args.steps}_steps".lower().replace(" ", "_")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.encoder:
        encoder, origin = args.encoder, f"Weights {args.encoder.weights}, or random weights"
    else:
        folder = pretrained(args, args.runs / name / "pretrained", length)
        shutil.copyfile(folder / "metrics.jsonl", args.out / f"{name}_pretraining.jsonl")
        shutil.copyfile(folder / "progress.png", args.out / f"{name}_pretraining.png")
        encoder = Encoder("tiny", str(folder))
        origin = f"Pretrained for {length} on {available} scans without labels, or random weights"
    settings = settings_of_steps(args)
    arms = arms_of(encoder, args.adaptations)
    if args.stored_volumes:
        origin += f", on stored tokens of about {args.stored_volumes} volumes"
    comparison = Comparison(origin, "pretraining.py", pairs_of(args.adaptations))
    for seed in args.seeds:
        for count in [count_of(text, available) for text in args.shots]:
            for arm, changes in arms.items():
                say(f"{name}, seed {seed}, {count} cases: {arm}")
                folder = args.runs / name / f"{count} cases" / arm.replace(" ", "_") / f"seed{seed}"
                changes = [f"seed={seed}", f"data.shots={count}", *changes]
                if args.stored_volumes and ("model.adaptation=frozen" in changes or arm == CONTROL):
                    variants = max(1, round(args.stored_volumes / count))
                    changes += ["data.cache_tokens=true", f"data.token_variants={variants}"]
                finished_run(folder, arm, args.config, [*settings, *changes])
            text = write_tables(args.runs / name, args.out / name, list(arms), comparison)
    scan = next(case.images[0] for case in dataset.cases if case.id == split["val"][0])
    for weights, suffix in ((encoder.weights, "tokens"), ("random", "tokens_random")):
        draw_tokens(scan, Encoder(encoder.name, weights), args, args.out / f"{name}_{suffix}.png")
    print(text)
    return 0


def draw_tokens(scan: Path, encoder: Encoder, args: argparse.Namespace, picture: Path) -> None:
    """Draw the principal components of the tokens of a scan, at half the stride of the pretraining."""
    command = [sys.executable, "-m", "volseg", "features", "-i", str(scan), "--slices", "5", "device=cpu"]
    command += [f"model.encoder={encoder.name}", f"model.weights={encoder.weights}"]
    command += [f"data.cache={args.runs / 'preprocessed'}", f"pretrain.token_stride={args.token_stride // 2}"]
    with TemporaryDirectory() as folder:
        subprocess.run([*command, "-o", folder], check=True)
        shutil.copyfile(next(Path(folder).glob("*.png")), picture)


def arms_of(encoder: Encoder, adaptations: list[str]) -> dict[str, list[str]]:
    """Return the settings of each arm; the last is the control."""
    network = f"model.encoder={encoder.name}"
    arms = {
        f"pretrained {how}": [network, f"model.weights={encoder.weights}", f"model.adaptation={how}"]
        for how in adaptations
    }
    for start in dict.fromkeys(RANDOM[how] for how in adaptations):
        arms[start] = [network, "model.weights=random", f"model.adaptation={start.split()[1]}"]
    return {**arms, CONTROL: ["model.encoder=identity", "model.weights=random"]}


def pairs_of(adaptations: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the arms whose difference is shown, one less the other."""
    return tuple((f"pretrained {how}", other) for how in adaptations for other in (RANDOM[how], CONTROL))


def pretrained(args: argparse.Namespace, folder: Path, length: str) -> Path:
    """Return the folder of the pretraining; run it if it is not finished."""
    if (folder / "model.safetensors").exists():
        return folder
    ends = ["train.max_minutes=null", f"train.max_steps={args.pretrain_steps}"]
    ends = ends if args.pretrain_steps else [f"train.max_minutes={args.minutes}"]
    command = [sys.executable, str(ROOT / "tools" / "pretrain.py"), "--config", "pretrain_cpu", "--resume"]
    command += [f"output={folder}", f"data.root={args.data}", f"data.fold={args.fold}", "device=cpu", *ends]
    command += [f"data.cache={args.runs / 'preprocessed'}", f"pretrain.token_stride={args.token_stride}"]
    say(f"pretraining of {length}: {' '.join(command)}")
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"{folder} failed, see above; the same command resumes it")
    return folder


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "pretraining")
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--minutes", type=float, default=60, help="of the pretraining (%(default)s)")
    parser.add_argument("--pretrain-steps", type=int, help="steps of the pretraining, in place of minutes")
    parser.add_argument("--token-stride", type=int, default=8, help="of the pretraining (%(default)s)")
    parser.add_argument("--encoder", type=Encoder.parse, help="encoder:weights, in place of a pretraining")
    parser.add_argument("--stored-volumes", type=int, help="of the token cache of frozen encoders (no cache)")
    parser.add_argument("--adaptations", type=words, default=[*ADAPTATIONS], help=",".join(ADAPTATIONS))
    parser.add_argument("--steps", type=int, required=True, help="steps of each training")
    parser.add_argument("--shots", type=words, default=words("1,5,10%,25%"), help="training cases (1,5,10%%,...)")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--fold", type=int, default=0, help="held out (%(default)s)")
    add_runs(parser, "pretraining")
    args = parser.parse_args()
    check_choices(parser, "--adaptations", args.adaptations, ADAPTATIONS)
    return args


if __name__ == "__main__":
    sys.exit(main())
