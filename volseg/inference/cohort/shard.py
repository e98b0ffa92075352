"""Distribution of a folder's cases over several processes, started by hand or by ``torchrun``."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volseg.errors import ConfigError, VolsegError

if TYPE_CHECKING:
    from volseg.io.cases import Case

logger = logging.getLogger(__name__)

Shard = tuple[int, int]
"""(i, n): part i of n, with about as many voxels as the others."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
POLL_S = 0.2
READ_THREADS = 8
"""Headers are read at the same time, because a network drive takes long to answer."""


def shard_of(cases: Sequence[Case], shard: Shard | None) -> list[Case]:
    """Return the cases of a shard, in their order; all without a shard.

    The largest scan comes first, each goes to the shard with the fewest voxels so far. Only the headers are read, so
    that every process comes to the same shards by itself.
    """
    if shard is None or len(cases) == 0:
        return list(cases)
    index, count = shard
    with ThreadPoolExecutor(READ_THREADS) as pool:
        sizes = list(pool.map(scan_voxels, cases))
    return [cases[number] for number in share_out(sizes, count)[index]]


def share_out(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Distribute items of given sizes among ``count`` shards; return the numbers of the items of each."""
    shards: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):  # ties stay in order
        smallest = min(range(count), key=lambda index: (loads[index], len(shards[index])))
        shards[smallest].append(number)
        loads[smallest] += sizes[number]
    return [sorted(shard) for shard in shards]


def scan_voxels(case: Case) -> int:
    """Return the number of voxels of a scan by its header; 0 if it cannot be read, which shows when it is predicted."""
    from volseg.io.volumes import read_grid  # nibabel, which commands that read no scan do without

    try:
        return math.prod(read_grid(case.images[0]).shape)
    except (VolsegError, OSError):
        return 0


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


def device_of_rank(name: str, rank: TorchrunRank | None) -> str:
    """Return the device; under torchrun each process has its own GPU, unless one is named."""
    import torch

    if rank is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{rank.local_rank}"
