"""Threads: how many compute at once."""

from __future__ import annotations

import threading

import pytest

from adaptertool.engine.pool import Cores


def test_one_that_waits_lets_another_compute() -> None:
    """Of two threads and one core the second computes while the first is away, which comes back when it is done."""
    cores, told, order = Cores(1), threading.Event(), list[str]()

    def first() -> None:
        with cores:
            order.append("first")
            with cores.away():
                told.set()
                assert begun.wait(60)
            order.append("first again")

    def second() -> None:
        assert told.wait(60)
        with cores:
            begun.set()
            order.append("second")
            order.append("second ends")

    begun = threading.Event()
    threads = [threading.Thread(target=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "second", "second ends", "first again"]


def test_one_that_fails_while_it_waits() -> None:
    cores = Cores(1)
    with pytest.raises(OSError, match="full"), cores, cores.away():
        raise OSError("full")
    with cores, cores.away(), cores:  # as many are free as before
        pass
