"""Steps of a run: batches that are accumulated, and steps that are skipped because they are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from tests.made.prepared_cases import made_plan
from volseg.config.load import load_config
from volseg.errors import VolsegError
from volseg.io.datasets import Dataset as ScanDataset
from volseg.training.checkpoint import RunProgress, load_checkpoint
from volseg.training.experiment import Experiment
from volseg.training.outcome import Outcomes, StepOutcome
from volseg.training.run_log import RunLog
from volseg.training.samples import batches
from volseg.training.state import TrainingState
from volseg.training.steps import Steps, training_row, training_steps
from volseg.training.stop import StopSignals


class Numbers(Dataset[dict[str, Any]]):
    """Sample ``i`` is the number ``i``."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.tensor(index), "case": f"case{index}"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_has_as_many_batches_as_are_accumulated_and_a_resumed_run_has_the_same(workers: int) -> None:
    config = load_config(None, ["train.batch_size=2", "train.accumulate=3", f"data.workers={workers}"])
    whole, resumed = batches(Numbers(), config, 0), batches(Numbers(), config, 1)
    numbers = [[batch["image"].tolist() for batch in next(whole)] for _ in range(2)]
    assert numbers == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert [batch["image"].tolist() for batch in next(resumed)] == numbers[1]


def outcome(loss: float, norm: float = 1.0) -> StepOutcome:
    return StepOutcome(torch.tensor(loss), torch.tensor(norm))


def test_three_steps_in_a_row_that_are_not_finite_end_the_run_and_name_the_cases(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, nan = RunProgress(), float("nan")
    outcomes = Outcomes(run)
    for loss in (0.5, nan, nan, 1.5, nan, nan):  # two in a row at most
        run.step += 1
        outcomes.add(outcome(loss), [{"case": [f"a{run.step}", "b"]}, {"case": ["c"]}])
    assert (run.skipped, len(run.failures)) == (4, 2)
    assert training_row(run, 0.1) == {"step": 6, "loss": 1.0, "lr": 0.1, "skipped": 4, "elapsed_s": 0.0}
    assert caplog.text.count("a step was skipped") == 4
    run.step += 1
    with pytest.raises(VolsegError, match="3 steps in a row") as error:
        outcomes.add(outcome(2.0, float("inf")), [{"case": ["d"]}])
    assert error.value.found == (
        "\n    step 5: loss nan, gradient norm 1, cases a5, b, c"
        "\n    step 6: loss nan, gradient norm 1, cases a6, b, c"
        "\n    step 7: loss 2, gradient norm inf, cases d"
    )
    assert "train.lr" in str(error.value.hint)


class DamagedSteps(Dataset[dict[str, Any]]):
    """Patches of noise, two a step; those of some steps hold a NaN."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(index))
        label = (image[0, 1:5] > 0).long()
        if index // 2 in self.steps:
            image[0, 2, 5, 5] = float("nan")
        return {"image": image, "label": label, "case": f"case{index}"}


def test_a_run_leaves_out_what_is_not_finite_and_ends_with_a_valid_checkpoint(tmp_path: Path) -> None:
    model = ["model.encoder=identity", "model.features=4", "model.max_features=8", "device=cpu", "precision=32"]
    length = ["train.max_steps=9", "train.checkpoint_every=1", "train.batch_size=1", "train.accumulate=2"]
    config = load_config(None, [*model, *length, "data.workers=0", "train.validate_cases=0"])
    experiment = Experiment(config, tmp_path, ScanDataset.__new__(ScanDataset), made_plan(), (), ())

    def run_through(samples: DamagedSteps, run: RunProgress, resume: bool) -> TrainingState:
        state = TrainingState(config, experiment.plan)
        if resume:
            run = state.restore(experiment.checkpoint_folder)
        with StopSignals() as signals:
            steps = Steps(
                config=config,
                batch_size=1,
                checkpoints=experiment.checkpoint_folder,
                state=state,
                samples=samples,
                log=RunLog(tmp_path, run.step),
            )
            for _ in training_steps(steps, run, Outcomes(run), signals):
                pass
        return state

    with pytest.raises(VolsegError, match="3 steps in a row") as error:
        run_through(DamagedSteps(1, 4, 5, 6), RunProgress(), resume=False)
    assert "step 5: loss nan, gradient norm nan, cases case8, case9" in str(error.value)
    checkpoint = load_checkpoint(experiment.checkpoint_folder)
    assert (checkpoint.progress.step, checkpoint.progress.skipped, checkpoint.average_updates) == (6, 3, 3)
    assert all(torch.isfinite(values).all() for values in checkpoint.model.values())
    with pytest.raises(VolsegError, match="3 steps in a row"):  # two of them before it was resumed
        run_through(DamagedSteps(6), RunProgress(), resume=True)
    state = run_through(DamagedSteps(), RunProgress(), resume=True)
    assert state.average.updates == 6
    final = load_checkpoint(experiment.checkpoint_folder).progress
    assert (final.step, final.skipped, final.failures, len(final.losses)) == (9, 3, [], 6)
