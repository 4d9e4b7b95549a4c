"""Run a function on ranks: one process each, started by Ray, that find each other as those of torchrun do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from stages.cluster.crew import MAX_FAILURES
from stages.cluster.session import Session
from stages.cluster.worker import Resources, Worker, WorkerLost, Workspace
from stages.core.errors import SpoError, UserError

_END_SECONDS = 60.0
"""Seconds in which ranks end by themselves after one of them has failed."""
_ROOM_SECONDS = 180.0
"""Seconds in which Ray must find room for all ranks."""


class RankGroup:
    """The ranks of a session, started at the first call."""

    def __init__(self, session: Session, name: str, count: int, gpus: int) -> None:
        """Describe the ranks.

        Args:
          name: name of a rank in messages and logs; its number follows.
          gpus: GPUs of a rank. If samplers and trainers share GPUs, ranks use those of the running samplers, and end
            after each call, so that no memory of theirs is left.

        Attributes:
          workers: the ranks that run, in order.
        """
        self.session, self.name, self.count, self.gpus = session, name, count, gpus
        self.workers: list[Worker] = []
        self._group: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any, on_report: Callable[[Any], None]) -> Any:
        """Call `function(workspace, report, *arguments)` on all ranks; return what rank 0 returns.

        If a rank is lost, all start again and the call is repeated: the function must resume its work.

        Args:
          on_report: receives the reports of rank 0.

        Raises:
          SpoError: a rank raised it, or ranks were lost `MAX_FAILURES` times.
        """
        lost = WorkerLost()
        for _ in range(MAX_FAILURES):
            try:
                if not self.workers:
                    self._start()
                result = self._call(function, arguments, on_report)
            except WorkerLost as error:
                lost = error
                self.session.progress.note(f"{self.name} ranks start again: {error}")
                self.end()
                continue
            except BaseException:  # the other ranks wait in an exchange for one that failed or was interrupted
                self.end()
                raise
            if self.session.cluster.share_gpus and self.gpus:
                self.end()
            return result
        where = f"; their logs are in {self.session.logs}" if self.session.logs else ""
        raise SpoError(f"a {self.name} was lost three times, last {lost}{where}")

    def end(self) -> None:
        """End all ranks."""
        workers, self.workers = self.workers, []
        for worker in workers:
            self.session.end(worker)
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _start(self) -> None:
        """Start the ranks, and give each the address of rank 0."""
        names = [f"{self.name}-{rank}" for rank in range(self.count)]
        places = self._places()
        self.workers = [self.session.start(name, *place) for name, place in zip(names, places, strict=True)]
        address, port = self.workers[0].call(_listen)
        locals_: dict[str, int] = {}
        for rank, worker in enumerate(self.workers):
            node = worker.call(_node)
            local = locals_[node] = locals_.get(node, -1) + 1
            numbers = {"RANK": rank, "WORLD_SIZE": self.count, "LOCAL_RANK": local, "MASTER_PORT": port}
            variables = {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": address}
            worker.call(_set_environment, variables)

    def _places(self) -> list[tuple[Resources, dict[str, str]]]:
        """Return resources and environment of each rank."""
        cluster = self.session.cluster
        if self.gpus and cluster.share_gpus and (found := self._sampler_gpus()):
            if len(found) < self.count:
                raise UserError(f"{self.count} trainers share the {len(found)} GPUs of the samplers: ask for fewer")
            on_node = [Resources(0, strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node, _ in found]
            variables = [{"CUDA_VISIBLE_DEVICES": gpu} for _, gpu in found]
            return list(zip(on_node, variables, strict=True))[: self.count]
        bundle = {"CPU": cluster.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        if cluster.memory_bytes:
            bundle["memory"] = cluster.memory_bytes
        self._group = placement_group([dict(bundle) for _ in range(self.count)], strategy="PACK")
        if not self._group.wait(timeout_seconds=_ROOM_SECONDS):
            raise UserError(f"Ray has no room for {self.count} trainers of {bundle} each: ask for fewer")
        strategies = [PlacementGroupSchedulingStrategy(self._group, index) for index in range(self.count)]
        return [(Resources(cluster.cpus, self.gpus, cluster.memory_bytes, one), {}) for one in strategies]

    def _sampler_gpus(self) -> list[tuple[str, str]]:
        """Return (node, GPU) of each GPU that a running sampler has, node by node."""
        found = []
        for worker in self.session.workers:
            with suppress(WorkerLost):  # its crew starts another one
                found += worker.call(_gpus)
        return sorted(found)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], on_report: Callable[[Any], None]) -> Any:
        threads = ThreadPoolExecutor(self.count, thread_name_prefix=self.name)
        try:
            calls = [
                threads.submit(worker.call, function, *arguments, on_report=None if rank else on_report)
                for rank, worker in enumerate(self.workers)
            ]
            wait(calls, return_when=FIRST_EXCEPTION)
            if not self._lost(calls):  # else the others may wait for the lost one forever
                wait(calls, timeout=_END_SECONDS)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        errors = [call.exception() for call in calls if call.done()]
        if error := self._lost(calls) or next(filter(None, errors), None):
            raise error
        return calls[0].result()

    def _lost(self, calls: Sequence[Future[Any]]) -> WorkerLost | None:
        """Return which rank is lost, and why; None if none is."""
        for worker, call in zip(self.workers, calls, strict=True):
            error = call.exception() if call.done() else None
            if isinstance(error, WorkerLost):
                return WorkerLost(f"{worker.name}: {error}")
        return None


def rank_group(session: Session, name: str, count: int) -> RankGroup:
    """Return the ranks of a session, which are started once and kept."""
    if name not in session.kept:
        gpus = session.cluster.gpus_per_trainer
        session.kept[name] = RankGroup(session, name, count, min(session.gpus, 1) if gpus is None else gpus)
    return session.kept[name]


def _listen(workspace: Workspace, report: Any) -> tuple[str, int]:
    """Return the address of this process's node and a free port there."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as listener:
        listener.bind((address, 0))
        return address, listener.getsockname()[1]


def _node(workspace: Workspace, report: Any) -> str:
    return ray.get_runtime_context().get_node_id()


def _gpus(workspace: Workspace, report: Any) -> list[tuple[str, str]]:
    """Return (node, GPU) of each GPU of this process."""
    node = ray.get_runtime_context().get_node_id()
    return [(node, str(gpu)) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"]]


def _set_environment(workspace: Workspace, report: Any, variables: dict[str, str]) -> None:
    os.environ.update(variables)
