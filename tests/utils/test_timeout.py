"""A time limit for work that may hang."""

import os
import threading
import time

import pytest

from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit


@pytest.mark.parametrize("seconds", [0, 30])
def test_results_and_errors_are_passed_on(seconds):
    assert run_with_time_limit(seconds, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_with_time_limit(seconds, lambda: 1 / 0)


def test_a_call_that_never_returns_is_abandoned():
    """Reading an empty pipe blocks in native code, as a decoder may."""
    read, write = os.pipe()
    with pytest.raises(TimeLimitExceeded, match=r"takes longer than 0\.2 s"):
        run_with_time_limit(0.2, lambda: os.read(read, 1))
    os.write(write, b"x")
    os.close(write)


@pytest.mark.no_cover  # traced code is left running in Python 3.11
def test_python_code_ends_soon_after_the_limit():
    beats = []

    def count():
        while True:
            beats.append(threading.current_thread())
            time.sleep(0.001)

    with pytest.raises(TimeLimitExceeded):
        run_with_time_limit(0.1, count)
    beats[0].join(30)
    assert not beats[0].is_alive()
