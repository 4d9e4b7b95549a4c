"""What `spo slurm` prints."""

from __future__ import annotations

from spo_cli.slurm import summary
from stages.configs.resources import ArrayResources, RankResources
from stages.slurm.jobs import Job, Work
from stages.slurm.scripts import Submission


def test_a_dry_run_begins_with_the_jobs_tasks_and_limits_of_each_stage():
    array = ArrayResources(partition="gpu", time="4:00:00", gpus="1", max_parallel=8)
    rollouts = [Job(Work(name, "rollout", 16, 16, 2), None, array, ()) for name in ("000", "001")]
    training = Job(Work("000", "train"), None, RankResources(ranks=4), ())
    submissions = [Submission(rollouts[0]), Submission(rollouts[1], tasks=(1, 5)), Submission(training)]
    title, *stages = summary(submissions)
    assert title.startswith("# 3 jobs, 11 tasks.")
    assert stages == [
        "#   rollout   2 jobs, 10 tasks; partition gpu, time 4:00:00, gpus 1, max_parallel 8",
        "#   train     1 job, 1 task; nodes 1, ranks 4",
    ]


def test_a_dry_run_says_if_there_is_nothing_to_submit():
    assert summary([]) == ["# Nothing to submit: all jobs are done or in the queue."]
