"""Several processes that share the cases of a folder, started by hand or by ``torchrun``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volseg.errors import ConfigError

Shard = tuple[int, int]
"""(i, n): every n-th case, from the i-th."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
POLL_S = 0.2


@dataclass(frozen=True)
class Place:
    """A process's place among those that ``torchrun`` started.

    Attributes:
        shard: Its share of the cases.
        local_rank: Its number on this machine, and so its GPU.
    """

    shard: Shard
    local_rank: int


def torchrun_place(environ: Mapping[str, str]) -> Place | None:
    """Reads the place from the environment that ``torchrun`` sets; ``None`` without it.

    Raises:
        ConfigError: The variables are not the numbers they should be.
    """
    values = [environ.get(name) for name in _VARIABLES]
    if None in values:
        return None
    if not all(value and value.isdecimal() for value in values) or int(values[0] or 0) >= int(values[1] or 0):
        raise ConfigError(
            "the variables of torchrun make no sense",
            found=", ".join(f"{name}={value}" for name, value in zip(_VARIABLES, values, strict=True)),
            expected="0 <= RANK < WORLD_SIZE and a LOCAL_RANK",
            hint="unset them, or start with torchrun",
        )
    rank, world, local = (int(value or 0) for value in values)
    return Place((rank, world), local)


def wait_for_all(place: Place, environ: Mapping[str, str]) -> None:
    """Waits until every process of this ``torchrun`` has come here.

    ``torchrun`` ends all processes as soon as one ends with an error code, so one whose shard has a bad case must not
    leave before the others are done. A process that dies on its way still ends the others, as ``torchrun`` has it.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch.distributed

    distributed: Any = torch.distributed  # its stores are public, but mypy does not see them there
    attempt = f"volseg/{environ.get('TORCHELASTIC_RUN_ID')}/{environ.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        agent = distributed.TCPStore(
            environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        store = distributed.PrefixStore(attempt, agent)
        store.add("finished", 1)
        while store.add("finished", 0) < place.shard[1]:
            time.sleep(POLL_S)
    except RuntimeError:  # torchrun itself is gone: there is nobody to wait for
        return
