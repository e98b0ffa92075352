"""nnU-Net's default trainer with an end after a time; nnU-Net finds it through its variable ``nnUNet_extTrainer``.

Network, loss, augmentation, sampling, optimizer and epochs are those of ``nnUNetTrainer``. Three things differ: the
learning rate follows elapsed training time instead of epochs, training ends in the middle of an epoch when the budget
is used up, and the held-out cases are not predicted here, as ``nnUNetv2_predict`` does that afterwards.
"""

import json
import os
import random
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from training.budget import BudgetClock, BudgetSchedule

COMPILE_STEPS = 3
"""With torch.compile, this many first steps are compilation."""


class nnUNetTrainerBudget(nnUNetTrainer):
    """Trains for ``NNUNET_BUDGET_S`` seconds from the seed ``NNUNET_SEED`` and writes ``budget.json``."""

    def run_training(self) -> None:
        """Train until the budget is used up."""
        seed_everything(int(os.environ["NNUNET_SEED"]))
        if self.device.type == "cpu":
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # the command takes all
        self.clock, self.steps = BudgetClock(float(os.environ["NNUNET_BUDGET_S"])), 0
        self.on_train_start()
        while self.clock.progress < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses = self.train_epoch()
            if self.clock.progress == 1:
                break
            started = time.perf_counter()
            self.on_train_epoch_end(losses)
            self.validate_epoch()
            self.on_epoch_end()
            self.clock.add("validation", time.perf_counter() - started)
        self.current_epoch += 1  # `on_train_end` stores the number before
        self.on_train_end()
        self.write_report()

    def configure_optimizers(self) -> tuple:
        """Return the default optimizer with a learning rate that follows elapsed time."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, BudgetSchedule(optimizer, self.initial_lr, self.clock)

    def train_epoch(self) -> list:
        """Train for an epoch, or until the budget is used up; return the losses."""
        losses = []
        for _ in range(self.num_iterations_per_epoch):
            started = time.perf_counter()
            self.lr_scheduler.step()
            losses.append(self.train_step(next(self.dataloader_train)))  # waits for the device: it returns the loss
            self.steps += 1
            compiling = self._do_i_compile() and self.steps <= COMPILE_STEPS
            self.clock.add("compilation" if compiling else "training", time.perf_counter() - started)
            if self.clock.progress == 1:
                break
        return losses

    def validate_epoch(self) -> None:
        """Validate on patches, as the default trainer does after every epoch; its result changes no weight."""
        with torch.no_grad():
            self.on_validation_epoch_start()
            outputs = [
                self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
            ]
            self.on_validation_epoch_end(outputs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Do nothing: the held-out cases are predicted by ``nnUNetv2_predict``."""

    def write_report(self) -> None:
        """Write what the run took."""
        cuda = self.device.type == "cuda"
        report = {
            "seconds": {part: round(seconds, 1) for part, seconds in self.clock.seconds.items()},
            "steps": self.steps,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "batch_size": self.batch_size,
            "patch_size": list(self.configuration_manager.patch_size),
            "compiled": self._do_i_compile(),
            "mirror_axes": list(self.inference_allowed_mirroring_axes or ()),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if cuda else None,
            "versions": {name: version(name) for name in ("nnunetv2", "torch", "numpy")},
        }
        (Path(self.output_folder) / "budget.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def seed_everything(seed: int) -> None:
    """Seed the initial weights and what this process draws; processes of the augmentation draw their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - nnU-Net draws from it
    torch.manual_seed(seed)
