"""Codes of 4 bits, and of 8: the nearest number of a table, as a search among the middles finds it."""

from __future__ import annotations

import numpy as np
import pytest

from adaptertool.codecs.quantised.four_bits import TABLES, Table, dynamic_map


@pytest.mark.parametrize("table", [*TABLES.values(), dynamic_map()], ids=[*TABLES, "8 bits"])
def test_the_nearest_number(table: Table) -> None:
    """At middles the lower one, and beside them; at the ends, beyond them, at zeros, and anywhere."""
    down, up = (np.nextafter(table.middles, np.float32(end)) for end in (-2, 2))
    special = np.array([0.0, -0.0, 1, -1, 1.5, -1.5, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    anywhere = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    values = np.concatenate([table.middles, down, up, special, anywhere])
    wanted = table.numbers[np.searchsorted(table.middles, values, side="left")]
    found = table.nearest(values)
    assert found.dtype == np.float32 and (found == wanted).all()
    distance = abs(values[:, None].astype(np.float64) - table.numbers)
    finite = np.isfinite(values)
    near = abs(values.astype(np.float64) - found)[finite] - distance.min(1)[finite]
    assert (near <= 2.0**-24).all()  # middles are rounded to float32
