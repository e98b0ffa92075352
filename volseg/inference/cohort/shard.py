"""Distribution of a folder's cases over several processes, started by hand or by ``torchrun``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volseg.errors import ConfigError

logger = logging.getLogger(__name__)

Shard = tuple[int, int]
"""(i, n): every n-th case, starting from case i."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
POLL_S = 0.2


@dataclass(frozen=True)
class TorchrunRank:
    """The rank of this process among those that ``torchrun`` started.

    Attributes:
        shard: (rank, number of processes): the cases of this process.
        local_rank: Rank on this machine, which is the index of its GPU.
    """

    shard: Shard
    local_rank: int


def torchrun_rank(environ: Mapping[str, str]) -> TorchrunRank | None:
    """Return the rank from the variables that ``torchrun`` sets, or ``None`` if one is missing.

    Without the address at which the processes meet, the variables are left over from something else: they are ignored
    with a warning, because a single process that predicts its share alone would leave the other cases out.

    Raises:
        ConfigError: A variable is not a number, or RANK is not below WORLD_SIZE.
    """
    values = [environ.get(name) for name in _VARIABLES]
    if None in values:
        return None
    if not all(value and value.isdecimal() for value in values) or int(values[0] or 0) >= int(values[1] or 0):
        raise ConfigError(
            "invalid environment variables of torchrun",
            found=", ".join(f"{name}={value}" for name, value in zip(_VARIABLES, values, strict=True)),
            expected="0 <= RANK < WORLD_SIZE and a LOCAL_RANK",
            hint="unset them, or start with torchrun",
        )
    if not all(environ.get(name) for name in _RENDEZVOUS):
        logger.warning("RANK and WORLD_SIZE are set without MASTER_ADDR and MASTER_PORT, and are ignored")
        return None
    rank, world, local = (int(value or 0) for value in values)
    return TorchrunRank((rank, world), local)


def wait_for_all(rank: TorchrunRank, environ: Mapping[str, str]) -> None:
    """Wait until every process of this ``torchrun`` has called this function.

    ``torchrun`` ends all processes as soon as one exits with an error code, so a process whose shard has a failed case
    must not exit before the others are done. A process that crashes still ends the others.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch.distributed

    distributed: Any = torch.distributed  # its stores are public, but missing from its type stubs
    attempt = f"volseg/{environ.get('TORCHELASTIC_RUN_ID')}/{environ.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        agent = distributed.TCPStore(
            environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        store = distributed.PrefixStore(attempt, agent)
        store.add("finished", 1)
        while store.add("finished", 0) < rank.shard[1]:
            time.sleep(POLL_S)
    except RuntimeError:  # torchrun itself has ended, and so have the other processes
        return
