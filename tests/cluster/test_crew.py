"""Workers of a real Ray: units are shared out, lost workers start again, and nothing is left at the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stages.cluster.crew import Crew, Unit
from stages.cluster.session import Session
from stages.cluster.worker import Resources, Workspace
from stages.configs.execution import Cluster
from stages.core.errors import SpoError, UserError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


def process(workspace: Workspace, report: Any) -> int:
    return os.getpid()


def remember(workspace: Workspace, report: Any, value: str) -> str:
    workspace.kept["value"] = value
    return value


def recall(workspace: Workspace, report: Any, when: Path | None = None) -> str:
    """Report the process, wait for a file if one is given, and return the value that `remember` kept."""
    report(os.getpid())
    while when and not when.exists():
        time.sleep(0.05)
    return workspace.kept["value"]


def meet(workspace: Workspace, report: Any, here: Path, there: Path) -> int:
    """Make a file, and wait for the file of another unit."""
    here.touch()
    while not there.exists():
        time.sleep(0.05)
    return os.getpid()


def die(workspace: Workspace, report: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(workspace: Workspace, report: Any) -> None:
    raise UserError("no such model")


@pytest.fixture(scope="module")
def crew(session: Session) -> Iterator[Crew]:
    crew = Crew(session, "helper", 2, [Resources()] * 2)
    yield crew
    crew.close()


def test_results_come_in_order_with_the_reports_of_each_unit(crew: Crew):
    assert len(set(crew.everywhere(process))) == 2
    crew.set_up(remember, "a")
    seen: list[int] = []
    units = [Unit(recall, (), "a unit", seen.append) for _ in range(6)]
    assert crew.run(units) == ["a"] * 6
    assert len(seen) == 6
    assert {unit.taken_by for unit in units} <= {0, 1}


def test_two_workers_work_at_the_same_time(crew: Crew, tmp_path: Path):
    places = tmp_path / "one", tmp_path / "other"
    first, second = crew.run([Unit(meet, pair, "a unit") for pair in (places, places[::-1])])
    assert first != second


def test_a_killed_worker_starts_again_is_set_up_and_its_unit_is_done(crew: Crew, tmp_path: Path):
    crew.set_up(remember, "b")
    first, second = crew.everywhere(process)
    undone: list[list[int]] = []

    def kill(reported: int) -> None:
        if reported == first:
            os.kill(first, signal.SIGKILL)
            (tmp_path / "killed").touch()

    units = [Unit(recall, (tmp_path / "killed",), "a unit", kill, undone.append) for _ in range(2)]
    assert crew.run(units) == ["b", "b"]
    assert undone == [[first]], "the reports of the lost call are taken back"
    after = crew.everywhere(process)
    assert second in after
    assert first not in after


def test_a_unit_that_loses_three_workers_ends_with_one_line_that_names_it(crew: Crew):
    with pytest.raises(SpoError) as caught:
        crew.run([Unit(die, (), "a unit of 3 samples")])
    text = str(caught.value)
    assert text.startswith("a worker was lost three times in a unit of 3 samples, last helper-")
    assert "its process ended (killed, or out of memory); its log: " in text
    assert "\n" not in text


def test_an_error_of_the_user_is_raised_as_it_is_and_loses_no_worker(crew: Crew):
    crew.set_up(remember, "c")
    before = crew.everywhere(process)
    with pytest.raises(UserError, match=r"^no such model$"):
        crew.run([Unit(refuse, (), "a unit")])
    assert crew.everywhere(process) == before


def test_logs_of_the_workers_are_files(session: Session):
    assert session.logs
    assert {path.name for path in session.logs.iterdir()} >= {"helper-0.log", "helper-1.log"}


def test_the_ray_of_this_machine_listens_on_the_loopback_interface_only(session: Session):
    session.begin()
    psutil = pytest.importorskip("psutil")
    (guard,) = [one for one in psutil.Process().children() if "guard.py" in " ".join(one.cmdline())]
    for one in [guard, *guard.children(recursive=True)]:
        with suppress(psutil.Error):
            addresses = {c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
            assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, (one, addresses)


def test_an_address_without_a_ray_is_an_error(tmp_path: Path):
    with (
        pytest.raises(UserError, match=r"no Ray answers at --address"),
        Session(Cluster(address="127.0.0.1:1"), tmp_path) as one,
    ):
        one.begin()
