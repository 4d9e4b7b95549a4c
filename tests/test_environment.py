"""The environment of the suite: the number of threads of each process, and variables that select tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import CLEARED, CLEARED_PREFIXES

PRINT_THREADS = """
import os
from tests.environment import THREAD_COUNTS, fix_environment
fix_environment()
print(*[os.environ[name] for name in THREAD_COUNTS])
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    """Fix the environment of a new process that inherits these variables, and print its numbers of threads."""
    inherited = {name: value for name, value in os.environ.items() if name != "TEST_THREADS"}
    return subprocess.run(
        [sys.executable, "-c", PRINT_THREADS], env=inherited | variables, capture_output=True, text=True, check=False
    )


def test_each_process_has_one_thread_whatever_the_shell_sets():
    assert run(OMP_NUM_THREADS="7", MKL_NUM_THREADS="5").stdout.split() == ["1"] * 4


def test_test_threads_sets_all_four_variables():
    assert run(TEST_THREADS="3", OMP_NUM_THREADS="7").stdout.split() == ["3"] * 4


@pytest.mark.parametrize("given", ["0", "-2", "many", "1.5"])
def test_a_number_of_threads_that_is_none_is_an_error(given: str):
    done = run(TEST_THREADS=given)
    assert done.returncode != 0
    assert f"expected TEST_THREADS to be a whole number above 0, found {given!r}" in done.stderr


def test_variables_that_the_makefile_sets_for_tests_are_not_cleared():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    names = re.findall(r"@([A-Z_]+)=\S+ \$\(BIN\)/python -m pytest", makefile)
    assert names == ["TEST_ALL_FAMILIES"]
    assert not [name for name in names if name.startswith(CLEARED_PREFIXES) or name in CLEARED]
