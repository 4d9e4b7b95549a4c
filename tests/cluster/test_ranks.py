"""Ranks of a real Ray find each other, and fail together with one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from stages.cluster.ranks import RankGroup
from stages.cluster.session import Session
from stages.cluster.worker import Workspace
from stages.core.errors import SpoError, UserError
from stages.core.launcher import Launch, read_launch

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def group(session: Session) -> Iterator[RankGroup]:
    group = RankGroup(session, "rank", 2, gpus=0)
    yield group
    group.end()


def launch(workspace: Workspace, report: Any) -> Launch:
    """Return what a rank knows of the launch, and report it."""
    report(found := read_launch())
    return found


def refuse(workspace: Workspace, report: Any, rank: int) -> None:
    if read_launch().rank == rank:
        raise UserError("this disk is not there")


def die(workspace: Workspace, report: Any, rank: int) -> None:
    if read_launch().rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)


def test_rank_0_answers_and_reports(group: RankGroup):
    reports: list[Launch] = []
    answer = group.call(launch, on_report=reports.append)
    assert (answer.rank, answer.size, answer.local_rank) == (0, 2, 0)
    assert answer.address
    assert answer.port > 0
    assert reports == [answer]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_is_raised_as_it_is(group: RankGroup, rank: int):
    with pytest.raises(UserError, match=r"^this disk is not there$"):
        group.call(refuse, rank, on_report=print)


def test_a_rank_that_is_lost_three_times_ends_with_one_line_that_names_it(group: RankGroup):
    with pytest.raises(SpoError) as caught:
        group.call(die, 1, on_report=print)
    text = str(caught.value)
    assert text.startswith("a rank was lost three times, last rank-1: its process ended (killed, or out of memory); ")
    assert "\n" not in text
