"""Tests of the map over processes: like `map`, and ended by the death of any of them."""

import functools
import itertools
import multiprocessing
import os
import signal
import struct
import threading
import time

import pytest

from elva_jax.utils import process_map as module
from elva_jax.utils.process_map import ProcessKilledError, process_map


def nothing():
    pass


def slowly(item):
    time.sleep(0.02 * (item % 3))
    return item, os.getpid()


def refuse(limit, item):
    if item == limit:
        raise OSError(28, "refused")
    return item


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_those_of_map_in_order(workers):
    with process_map(workers, nothing) as mapped:
        assert list(mapped(abs, [])) == []
        many = range(-5 * module.CHUNK, module.CHUNK // 2)
        assert list(mapped(abs, many)) == [abs(item) for item in many]
        found = list(mapped(slowly, range(4 * module.CHUNK)))
    assert [item for item, _ in found] == list(range(4 * module.CHUNK))
    assert {pid for _, pid in found} - {os.getpid()}
    assert not multiprocessing.active_children()


def test_an_exception_of_the_function_is_raised_here_after_earlier_results():
    seen = []
    limit = 2 * module.CHUNK
    with pytest.raises(OSError, match="refused"), process_map(2, nothing) as mapped:
        seen.extend(mapped(functools.partial(refuse, limit), range(10 * module.CHUNK)))
    assert not multiprocessing.active_children()


def test_an_abandoned_map_ends_its_processes():
    with process_map(2, nothing) as mapped:
        assert list(itertools.islice(mapped(abs, range(10_000)), 3)) == [0, 1, 2]
    assert not multiprocessing.active_children()


def die_while_writing(item):
    """Ends this process in the middle of a message, as a kill at that moment would."""
    if item:
        pipe = next(fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_socket(fd) and fd > 2)
        os.write(pipe, struct.pack("!i", 1000) + b"the beginning")
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def _is_socket(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def test_a_process_that_is_killed_while_it_writes_is_noticed():
    with pytest.raises(ProcessKilledError), process_map(2, nothing) as mapped:
        list(mapped(die_while_writing, [0] * module.CHUNK + [1] * module.CHUNK))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_process_that_is_killed_at_any_moment_is_noticed(seconds):
    def kill():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(children[-1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ProcessKilledError), process_map(2, nothing) as mapped:
        list(mapped(slowly, range(100_000)))
    killer.join()
    assert not multiprocessing.active_children()
