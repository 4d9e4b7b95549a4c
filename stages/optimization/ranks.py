"""Exchange Python values and errors between the ranks of a training call; gradients are reduced separately.

All exchanges are `all_gather_object`; user errors travel with the values. A rank that meets such an error sends it in
place of the value that the others wait for, and all ranks end with that one error. The exchanges use gloo, which
notices at once when a rank is gone; gradients use the backend of their device.
"""

from __future__ import annotations

import atexit
import datetime
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from stages.core.errors import SpoError, UserError, first_line
from stages.core.launcher import Launch
from stages.optimization.batches import RankSubset

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(days=1)
"""Long, because rank 0 may hash or write a large model while the others wait. gloo notices a dead rank without it."""
_RANK_IS_GONE = re.compile(r"closed by peer|reset by peer|Broken pipe|remote process exited")


@dataclass
class Ranks:
    """The ranks of a training call, seen from this process.

    Attributes:
      rank: index of this process, from 0.
      size: number of ranks.
      group: gloo process group of the exchanges; None for a single process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    _failed: bool = False  # the last exchange carried an error, so every rank knows of it

    @property
    def subset(self) -> RankSubset:
        """The examples of a batch that this rank processes."""
        return RankSubset(self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order of rank. All ranks must call it, the same number of times.

        Raises:
          SpoError: the error of another rank.
        """
        return [sent for sent, _ in self._exchange(value, None)]

    def broadcast_from_main(self, compute: Callable[[], T]) -> T:
        """Run `compute` on rank 0 only, and return its result on all ranks."""
        return self.gather(compute() if self.rank == 0 else None)[0]  # pyright: ignore[reportReturnType]

    def sum(self, figures: dict[str, float]) -> dict[str, float]:
        """Sum each figure over the ranks; figures that a rank lacks count as 0."""
        total: dict[str, float] = {}
        for one in self.gather(figures):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def lockstep(self, passes: Iterable[T]) -> Iterator[tuple[T | None, bool]]:
        """Yield this rank's passes, then None while another rank has passes left; and whether it is the last for all.

        The ranks of an engine must run their passes together, because each pass communicates.
        """
        remaining = iter(passes)
        current = next(remaining, None)
        any_left = any(self.gather(current is not None))
        while any_left:
            following = next(remaining, None)
            any_left = any(self.gather(following is not None))
            yield current, not any_left
            current = following

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """End the block on all ranks with the same error, if it is a `SpoError`.

        Raises:
          SpoError: the error of this rank or of another one, or the loss of another rank.
        """
        self._failed = False
        try:
            yield
        except SpoError as error:
            if not self._failed:
                self._exchange(None, error)
            raise
        except RuntimeError as error:
            if self.size == 1 or not _RANK_IS_GONE.search(str(error)):
                raise
            raise SpoError("another rank ended early; see its last output, above or in its log") from error

    def _exchange(self, value: Any, error: SpoError | None) -> list[tuple[Any, SpoError | None]]:
        sent: list[Any] = [(value, error)] * self.size
        if self.size > 1:
            dist.all_gather_object(sent, (value, error), group=self.group)
        self._failed = any(failed for _, failed in sent)
        if self._failed and error is None:
            rank, first = next((rank, failed) for rank, (_, failed) in enumerate(sent) if failed)
            raise first if rank == 0 else type(first)(f"rank {rank}: {first}")
        return sent


ALONE = Ranks()
"""A call of one process."""

_joined: Ranks | None = None


def join(launch: Launch, device: str) -> Ranks:
    """Connect to the other ranks, once per process; the connection lasts until the process ends.

    Args:
      device: type of this rank's device. Gradients travel over NCCL between `cuda` devices, over gloo between `cpu`.

    Raises:
      UserError: the ranks have different types of devices.
      SpoError: the other ranks are not reachable.
    """
    global _joined
    _joined = _joined or _connect(launch, device)
    return _joined


def _connect(launch: Launch, device: str) -> Ranks:
    backend = "nccl" if device == "cuda" else "gloo"
    address = f"{launch.address}:{launch.port}"
    try:
        if launch.size == 1:  # DeepSpeed needs a process group even for one rank
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            return Ranks()
        store, _, _ = next(dist.rendezvous(f"tcp://{address}", launch.rank, launch.size))
        store.set(f"device of {launch.rank}", device)
        devices = [store.get(f"device of {rank}").decode() for rank in range(launch.size)]
        if len(set(devices)) > 1:
            raise UserError(
                f"of {launch.size} ranks, {devices.count('cpu')} have no GPU: pass --device cpu, or give each one"
            )
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size)
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    except RuntimeError as error:
        raise SpoError(
            f"rank {launch.rank} of {launch.size} could not reach the others at {address}: {first_line(error)}"
        ) from error
    finally:
        atexit.register(_disconnect)
    return Ranks(launch.rank, launch.size, group)


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
