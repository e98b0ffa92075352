"""Damaged model files and checkpoints, and the functions that read them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np

from trials.mutations import Generator, Mutant, damage_bytes, damage_document, damage_value
from trials.samples import NETWORK, make_model

LARGE = (
    *(("encoder", "dinov2_g14"), ("encoder", "dinov2_l14"), ("features", 10**5), ("features", 10**9)),
    *(("lora_rank", 10**9), ("max_features", 10**9), ("adjacent_slices", 3)),
)
"""Settings in a small model file that describe a network of gigabytes."""


class DamagedModels:
    """Mutants of a model file.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._model = folder, make_model(folder / "whole.safetensors").read_bytes()

    def make(self, rng: Generator) -> Mutant:
        """Damage the bytes, the header of tensors, the metadata or the weights."""
        path, choice = self._folder / "mutant.safetensors", rng.random()
        size = struct.unpack("<Q", self._model[:8])[0]
        header, weights = json.loads(self._model[8 : 8 + size]), self._model[8 + size :]
        if choice < 0.3:
            data, note = damage_bytes(self._model, rng)
        elif choice < 0.4:
            number = int(rng.choice(np.array([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1], dtype=object)))
            data, note = struct.pack("<Q", number) + self._model[8:], f"length of the header {number}"
        elif choice < 0.5:
            values = np.frombuffer(weights[: len(weights) // 4 * 4], "<f4").copy()
            place, value = int(rng.integers(values.size)), float(rng.choice((np.nan, np.inf, -np.inf, 3e38)))
            values[place], note = value, f"weight {place} = {value}"
            data = self._model[: 8 + size] + values.tobytes()
        else:
            key = next(key for key in header["__metadata__"] if key != "format")
            if choice < 0.7:
                del header["__metadata__"]
                text, note = damage_document(header, rng)
                whole = json.loads(self._model[8 : 8 + size])["__metadata__"]
                text = text[:1] + f'"__metadata__": {json.dumps(whole)},' + text[1:] if text[:1] == "{" else text
            elif choice < 0.75:
                document = json.loads(header["__metadata__"][key])
                name, value = LARGE[int(rng.integers(len(LARGE)))]
                document["config"]["model"][name] = value
                header["__metadata__"][key] = json.dumps(document)
                text, note = json.dumps(header), f"{name} = {value}"
            else:
                header["__metadata__"][key], note = damage_document(json.loads(header["__metadata__"][key]), rng)
                text = json.dumps(header)
            block = text.encode(errors="surrogatepass")
            data = struct.pack("<Q", len(block)) + block + weights
        path.write_bytes(data)
        return Mutant("model file", note, path, lambda: _load_model(path))


def _load_model(path: Path) -> None:
    import volseg
    from volseg.io.model_file import read_model

    volseg.load(path, device="cpu")
    state, _ = read_model(path)
    assert all(bool(values.isfinite().all()) for values in state.values()), "weights that are not finite"


class DamagedCheckpoints:
    """Mutants of the checkpoint of a tiny network.

    Args:
        folder: Where they are written.

    Attributes:
        config: Configuration of the run.
        plan: Its plan.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        from prediction.networks import plan_for
        from volseg.config.load import load_config
        from volseg.training.checkpoint import RunProgress
        from volseg.training.state import TrainingState

        self.config = load_config(None, [*NETWORK, "device=cpu", "precision=32", "train.max_steps=4"])
        self.plan = plan_for((8, 16, 16), 8, 3)
        self._state = TrainingState(self.config, self.plan)
        batch = {"image": torch.randn(1, 1, 10, 16, 16), "label": torch.randint(3, (1, 8, 16, 16))}
        self._state.step([batch], 0, 0.1)
        self._folder, self._whole = folder / "checkpoint", folder / "whole_checkpoint"
        self._folder.mkdir()
        self._state.save(self._whole, RunProgress(step=1))
        self._files = {file.name: file.read_bytes() for file in self._whole.iterdir()}
        self._weights = {name: values.clone() for name, values in self._state.model.state_dict().items()}

    def make(self, rng: Generator) -> Mutant:
        """Damage the bytes of the file, or write damaged values as training writes them."""
        for file in self._folder.glob("*"):
            file.unlink()
        if rng.random() < 0.5:
            for name, data in self._files.items():
                (self._folder / name).write_bytes(data)
            damaged, note = damage_bytes(self._files["last.pt"], rng)
            (self._folder / "last.pt").write_bytes(damaged)
            return Mutant("checkpoint", note, self._folder, self._restore_unchanged)
        note = self._save_damaged(rng)
        return Mutant("checkpoint", note, self._folder, self._restore)

    def _save_damaged(self, rng: Generator) -> str:
        """Write the state with a value that was replaced, removed or renamed, and with the right checksum."""
        import torch

        damaged, note = damage_value(torch.load(self._whole / "last.pt", weights_only=True), rng)
        content = io.BytesIO()
        torch.save(damaged, content)
        start = b"\nvolseg checkpoint, step %015d, crc32 " % 1
        line = start + b"%08x\n" % zlib.crc32(start, zlib.crc32(content.getvalue()))
        (self._folder / "last.pt").write_bytes(content.getvalue() + line)
        return f"state: {note}"

    def _restore(self) -> None:
        self._state.restore(self._folder)

    def _restore_unchanged(self) -> None:
        """Restore, and check that the weights are those that were written."""
        self._restore()
        weights = self._state.model.state_dict()
        same = all(bool((weights[name] == values).all()) for name, values in self._weights.items())
        assert same, "other weights than were written"
