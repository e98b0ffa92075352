"""What the functions of the Python interface return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.evaluation.choose_postprocessing import Choice
    from volseg.evaluation.results import Evaluation
    from volseg.planning.examine import Examination
    from volseg.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores of one or several methods.

    Attributes:
        evaluation: The scores of every method, case and class.
        summary: Means with intervals, counts and comparisons, as written to ``scores.json``.
        table: The tables of ``scores.md`` as text.
        files: The files that were written.
    """

    evaluation: Evaluation
    summary: dict[str, Any]
    table: str
    files: tuple[Path, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if every case was predicted and scored, 1 if a prediction is missing or a case failed, 2 if all failed."""
        if len(self.evaluation.failed) == len(self.evaluation.results):
            return 2
        return 1 if self.evaluation.failed or self.evaluation.missing else 0


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished run.

    Attributes:
        model_file: The trained model.
        folder: The run folder.
        scores: Scores of the held-out cases, also in ``validation/scores/``; ``None`` if no case is held out, if the
            resumed run was finished already, and in all processes of ``torchrun`` but the first.
        failed: Held-out cases that could not be predicted; they are not scored.
    """

    model_file: Path
    folder: Path
    scores: EvaluationResult | None
    failed: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """That of the scores, and at least 1 if a held-out case could not be predicted."""
        return max(self.scores.exit_code if self.scores is not None else 0, 1 if self.failed else 0)


@dataclass(frozen=True, kw_only=True)
class CrossvalResult:
    """A finished cross-validation.

    Attributes:
        folder: Its folder, which is also the ensemble that :func:`predict` and :func:`load` take.
        folds: Numbers of the folds of the ensemble.
        scores: Scores of all out-of-fold masks together, also in ``validation/``; with the chosen postprocessing as a
            second method, if there is one.
        fold_table: Mean scores of each fold and of all cases, as text.
        choice: The chosen postprocessing, and what was tried.
        failed: Held-out cases that could not be predicted; they are not scored.
    """

    folder: Path
    folds: tuple[int, ...]
    scores: EvaluationResult
    fold_table: str
    choice: Choice
    failed: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """That of the scores, and at least 1 if a held-out case could not be predicted."""
        return max(self.scores.exit_code, 1 if self.failed else 0)


@dataclass(frozen=True, kw_only=True)
class PlanningResult:
    """A checked data set and its plan.

    Attributes:
        plan: The plan, with the reason of each decision.
        examination: The measurements, and what was found in the cases.
        config: The configuration whose network is counted.
        files: The files that were written: the plan and the picture of the data set.
    """

    plan: Plan
    examination: Examination
    config: Config
    files: tuple[Path, ...] = ()

    @property
    def summary(self) -> str:
        """What the data set is, its ranges, each decision with its reason, what looks odd, and the cost of a step."""
        from volseg.errors import counted
        from volseg.planning.summary import summary_text
        from volseg.training.memory import compare_with_free, network_name, step_memory

        measured, plan = self.examination.usable()
        needed = step_memory(self.config, plan, plan.batch_size).total
        patches, network = counted(plan.batch_size, "patch"), network_name(self.config)
        cost = f"With {patches} and the network {network}, {compare_with_free(self.config, needed)[1]}."
        return f"{summary_text(measured, plan, self.examination.findings)}\n\n{cost}"
