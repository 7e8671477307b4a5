"""A set that keeps nothing alive, and that any thread may change at any time."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from hindsight_exec.executor.weak import WeakObjects


class Thing:
    pass


def test_members():
    """A member is there until it is discarded, or until nobody else refers to it."""
    objects = WeakObjects()
    first, second, third = Thing(), Thing(), Thing()
    for one in (first, second, second, third):
        objects.add(one)
    assert len(objects) == 3
    objects.discard(first)
    objects.discard(first)
    del one, third
    gc.collect()
    assert objects.all() == [second]
    assert len(objects) == 1


@pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="elsewhere members end when they are collected"
)
def test_members_that_end_on_other_threads():
    """A look at the members succeeds, whatever ends meanwhile."""
    objects, done = WeakObjects(), threading.Event()
    stays = Thing()
    objects.add(stays)

    def churn():
        while not done.is_set():
            objects.add(Thing())

    threads = [threading.Thread(target=churn) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        assert all(stays in objects.all() for _ in range(2000))
    finally:
        done.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
