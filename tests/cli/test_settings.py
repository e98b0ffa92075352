from __future__ import annotations

import subprocess
import sys

import pytest

from volseg.cli.main import main
from volseg.config.reference import settings
from volseg.planning.settings import plan_settings


def test_every_setting_is_listed_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    for one in (*settings(), *plan_settings()):
        assert len(one.meaning) > 10, one.key
        assert f"{one.key} ({one.type}, default {one.default})" in text


def test_a_word_selects_by_key_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "LORA"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert {"model.lora_rank (int, default 8)", "model.adaptation (str, default full)"} <= set(lines)
    assert not any(line.startswith(("data.root", "plan.")) for line in lines)


def test_fields_of_the_plan_are_settings_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "plan.token_stride"]) == 0
    assert "Voxels per token in plane" in capsys.readouterr().out


def test_an_unknown_word_suggests_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "lora_rnk"]) == 2
    assert "did you mean lora_rank?" in capsys.readouterr().err


def test_help_of_train_tells_where_the_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "volseg settings" in capsys.readouterr().out


def test_a_mistyped_setting_with_its_section_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "run.max_step"]) == 2
    assert "did you mean max_steps?" in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback() -> None:
    command = [sys.executable, "-m", "volseg", "settings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
