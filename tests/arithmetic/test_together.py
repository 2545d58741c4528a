"""Work that several threads share: each part once, in order, and errors for all who wait."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adaptertool.arithmetic.together import Together


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_is_found_out_once_by_all(threads: int) -> None:
    asked, by = list[int](), set[int]()
    meet = threading.Barrier(threads)

    def square(number: int) -> int:
        by.add(threading.get_ident())
        if number < threads:  # each thread has one of the first, or none would go on
            meet.wait(30)
        return number * number

    def find() -> list[int]:
        asked.append(1)
        return whole.each(square, range(50)) + whole.each(square, [9]) + whole.each(square, [])

    whole = Together(find)
    with ThreadPoolExecutor(threads) as pool:
        found = [future.result() for future in [pool.submit(whole.get) for _ in range(threads)]]
    assert found == [[number * number for number in range(50)] + [81]] * threads
    assert len(asked) == 1
    assert len(by) == threads
    assert whole.get() is found[0]


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_reaches_all(threads: int) -> None:
    calls = list[int]()

    def fail(number: int) -> None:
        calls.append(number)
        if number == 7:
            raise ValueError("seven")

    whole = Together[None](lambda: whole.each(fail, range(1000)) and None)
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(whole.get) for _ in range(threads)]:
            with pytest.raises(ValueError, match="seven"):
                future.result()
    assert len(calls) < 1000
    with pytest.raises(ValueError, match="seven"):
        whole.get()
