"""Owns what the ranks of a training call say to each other beside gradients: outcomes, counts, sums, errors.

All of it is one exchange in which everybody hears everybody. What a user must know of is said in it as well: a rank
that meets such an error says so in place of what the others wait for, and all end with that one error. It goes over
gloo, which notices at once when a rank is gone; gradients have the backend of their device.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from stages.core.errors import SpoError, UserError, first_line
from stages.core.launcher import Launch
from stages.optimization.batches import RankSubset

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=1)
"""Rank 0 may hash a large model, or write one, while the others wait; that it is gone shows otherwise."""
_GONE = re.compile(r"closed by peer|reset by peer|Broken pipe|remote process exited")


@dataclass
class Ranks:
    """This process among its kind; one on its own talks to itself.

    Attributes:
      rank: from 0. size: how many.
      group: what they talk over; None for one on its own.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    _over: bool = False

    @property
    def subset(self) -> RankSubset:
        """The share of a batch that is this rank's."""
        return RankSubset(self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """What every rank says, in their order; all must call it, the same number of times.

        Raises:
          SpoError: what another rank has met.
        """
        return [said for said, _ in self._exchange(value, None)]

    def broadcast_from_main(self, compute: Callable[[], T]) -> T:
        """What rank 0 computes, for all: nobody else does it."""
        return self.gather(compute() if self.rank == 0 else None)[0]  # pyright: ignore[reportReturnType]

    def sum(self, figures: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each figure; a rank may lack some."""
        total: dict[str, float] = {}
        for one in self.gather(figures):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def lockstep(self, passes: Iterable[T]) -> Iterator[tuple[T | None, bool]]:
        """This rank's passes, then None for as long as another has one; and whether it is the last for all.

        An engine's ranks work on a pass together, whatever each of them feeds to it.
        """
        coming = iter(passes)
        now = next(coming, None)
        going_on = any(self.gather(now is not None))
        while going_on:
            following = next(coming, None)
            going_on = any(self.gather(following is not None))
            yield now, not going_on
            now = following

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """A block that ends on all ranks with the same error, if it is one that is told to the user.

        Raises:
          SpoError: of this rank, of another, or that another is gone.
        """
        self._over = False
        try:
            yield
        except SpoError as error:
            if not self._over:
                self._exchange(None, error)
            raise
        except RuntimeError as error:
            if self.size == 1 or not _GONE.search(str(error)):
                raise
            raise SpoError("another rank has ended early: what it said last, above or in its log, tells why") from error

    def _exchange(self, value: Any, error: SpoError | None) -> list[tuple[Any, SpoError | None]]:
        said: list[Any] = [(value, error)] * self.size
        if self.size > 1:
            import torch.distributed as dist

            dist.all_gather_object(said, (value, error), group=self.group)
        self._over = any(failed for _, failed in said)
        if self._over and error is None:
            rank, met = next((rank, failed) for rank, (_, failed) in enumerate(said) if failed)
            raise met if rank == 0 else type(met)(f"rank {rank}: {met}")
        return said


ALONE = Ranks()


_joined: Ranks | None = None


def join(launch: Launch, device: str) -> Ranks:
    """Meets the other ranks, once per process; they stay together until it ends.

    Args:
      device: type of this rank's device: gradients go over NCCL between `cuda`, over gloo between `cpu`.

    Raises:
      UserError: some have another type of device.
      SpoError: they do not come.
    """
    global _joined
    _joined = _joined or _meet(launch, device)
    return _joined


def _meet(launch: Launch, device: str) -> Ranks:
    import atexit

    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    place = f"{launch.address}:{launch.port}"
    try:
        if launch.size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            return Ranks()
        store, _, _ = next(dist.rendezvous(f"tcp://{place}", launch.rank, launch.size))
        store.set(f"device of {launch.rank}", device)
        devices = [store.get(f"device of {rank}").decode() for rank in range(launch.size)]
        if len(set(devices)) > 1:
            raise UserError(
                f"of {launch.size} ranks, {devices.count('cpu')} have no GPU: pass --device cpu, or give each one"
            )
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size)
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except RuntimeError as error:
        raise SpoError(
            f"rank {launch.rank} of {launch.size} could not meet the others at {place}: {first_line(error)}"
        ) from error
    finally:
        atexit.register(_part)
    return Ranks(launch.rank, launch.size, group)


def _part() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
