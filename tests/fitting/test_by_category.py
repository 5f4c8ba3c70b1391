import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvad.fitting.by_category import group_by_category


def images(*counts):
    """Training images of so many categories, so many each."""
    names = [f"c{number}" for number, count in enumerate(counts) for _ in range(count)]
    ids = [f"{name}/{row}.png" for row, name in enumerate(names)]
    return pa.table({"category": names, "image_id": ids})


def batch(rows, bad=()):
    """A batch of rows whose features are their own numbers."""
    rows = np.array(rows)
    return {
        "row": rows,
        "features_depth": np.full((len(rows), 1), 7, np.float32),
        "features_place": np.where(np.isin(rows, bad), 0, rows)[:, None, None] * np.ones((1, 2, 3), np.float32),
        "error": np.array(["broken" if row in bad else "" for row in rows], object),
        "seconds": np.full(len(rows), 0.5),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 7), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same(counts, size, random):
    table = images(*counts)
    total = len(table)
    bad = [row for row in range(total) if random.random() < 0.2]
    order = random.sample(range(total), total)
    found = {
        one.name: one
        for one in group_by_category((batch(order[i : i + size], bad) for i in range(0, total, size)), table)
    }
    first = 0
    for number, count in enumerate(counts):
        one = found.pop(f"c{number}")
        usable = [row for row in range(first, first + count) if row not in bad]
        np.testing.assert_array_equal(one.features["place"][:, 0, 0], usable)
        assert one.features["place"].shape[1:] == (2, 3)
        assert one.features["depth"].shape == (len(usable), 1)
        asked = np.array(random.sample(range(count), random.randint(1, count)))
        chosen = one.features["place"][one.rows(asked)][:, 0, 0] - first
        np.testing.assert_array_equal(chosen, [place for place in asked if first + place not in bad])
        assert one.errors == {f"c{number}/{row}.png": "broken" for row in range(first, first + count) if row in bad}
        assert one.seconds == pytest.approx(0.5 * count)
        first += count
    assert not found


def test_a_category_is_given_out_when_it_is_complete():
    arrived = []

    def stream():
        for rows in ([0, 3], [1], [2, 4]):
            arrived.append(rows)
            yield batch(rows)

    found = group_by_category(stream(), images(2, 3))
    assert next(found).name == "c0"
    assert arrived == [[0, 3], [1]]
    assert next(found).name == "c1"
