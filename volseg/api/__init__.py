"""The Python interface: plan, check, pretrain, train, crossval, predict, evaluate, features, probe, convert, download
and load.

The commands call these functions. Importing them is cheap; a function imports what it needs when it is called.
"""

from volseg.api.crossvalidation import crossval
from volseg.api.datasets import convert, download
from volseg.api.evaluation import evaluate
from volseg.api.planning import check, plan, plan_dataset
from volseg.api.prediction import load, predict
from volseg.api.pretraining import pretrain
from volseg.api.probing import features, probe
from volseg.api.results import CrossvalResult, EvaluationResult, PlanningResult, TrainingResult
from volseg.api.training import train

__all__ = [
    "CrossvalResult",
    "EvaluationResult",
    "PlanningResult",
    "TrainingResult",
    "check",
    "convert",
    "crossval",
    "download",
    "evaluate",
    "features",
    "load",
    "plan",
    "plan_dataset",
    "predict",
    "pretrain",
    "probe",
    "train",
]
