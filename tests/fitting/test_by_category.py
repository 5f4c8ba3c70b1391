import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mvad.fitting.by_category import group_by_category


def images(*counts):
    """Training images of so many categories, so many each."""
    names = [f"c{number}" for number, count in enumerate(counts) for _ in range(count)]
    ids = [f"{name}/{row}.png" for row, name in enumerate(names)]
    return pa.table({"category": names, "image_id": ids, "uri": ids})


def batch(rows, bad=()):
    """A batch of rows whose features are their own numbers."""
    rows = np.array(rows)
    return {
        "row": rows,
        "features_depth": np.full((len(rows), 1), 7, np.float32),
        "features_patches": np.where(np.isin(rows, bad), 0, rows)[:, None, None] * np.ones((1, 2, 3), np.float32),
        "error": np.array(["broken" if row in bad else "" for row in rows], object),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 7), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same(counts, size, random):
    table = images(*counts)
    total = len(table)
    bad = [row for row in range(total) if random.random() < 0.2]
    order = random.sample(range(total), total)
    batches = (batch(order[i : i + size], bad) for i in range(0, total, size))
    categories = {category.category: category for category in group_by_category(batches, table)}
    first = 0
    for number, count in enumerate(counts):
        category = categories.pop(f"c{number}")
        rows = range(first, first + count)
        usable = [row for row in rows if row not in bad]
        np.testing.assert_array_equal(category.features["patches"][:, 0, 0], usable)
        assert category.features["patches"].shape[1:] == (2, 3)
        assert category.features["depth"].shape == (len(usable), 1)
        assert category.image_ids.tolist() == [f"c{number}/{row}.png" for row in usable]
        assert category.variants.tolist() == [0] * len(usable)
        assert category.all_image_ids == [f"c{number}/{row}.png" for row in rows]
        sample = sorted(random.sample(rows, random.randint(1, count)))
        positions = category.rows_of([f"c{number}/{row}.png" for row in sample])
        picked = category.features["patches"][positions][:, 0, 0]
        np.testing.assert_array_equal(picked, [row for row in sample if row not in bad])
        assert category.errors == {f"c{number}/{row}.png": "broken" for row in rows if row in bad}
        assert category.nbytes == 4 * len(usable) * (2 * 3 + 1)
        first += count
    assert not categories


def test_a_category_is_yielded_when_it_is_complete():
    arrived = []

    def stream():
        for rows in ([0, 3], [1], [2, 4]):
            arrived.append(rows)
            yield batch(rows)

    categories = group_by_category(stream(), images(2, 3))
    assert next(categories).category == "c0"
    assert arrived == [[0, 3], [1]]
    assert next(categories).category == "c1"


def test_variants_belong_to_their_image():
    """Two of three images with two variants each; one of the two cannot be used."""
    ids = ["a", "a", "a", "b", "c", "c", "c"]
    variants = [0, 31, 32, 0, 0, 51, 52]
    table = pa.table({"category": ["cap"] * 7, "image_id": ids, "uri": ids, "variant": variants})
    (category,) = group_by_category([batch(range(7), bad=(4, 5, 6))], table)
    assert category.all_image_ids == ["a", "b", "c"]
    assert category.image_ids.tolist() == ["a", "a", "a", "b"]
    assert category.variants.tolist() == [0, 31, 32, 0]
    assert category.errors == {"c": "broken"}
    assert category.rows_of(["a", "b", "c"]).tolist() == [0, 3]
    assert category.rows_of(["a", "c"], n_variants=2).tolist() == [0, 1, 2]
    assert category.rows_of(["a", "b"], n_variants=1).tolist() == [0, 1, 3]


def test_each_shard_is_yielded_by_itself():
    shards = np.array([0, 0, 1, 1, 0, 1])
    batches = [batch([2, 0, 4]), batch([3, 1, 5], bad=[1])]
    units = {(unit.category, unit.shard): unit for unit in group_by_category(batches, images(4, 2), shards)}
    assert units.keys() == {("c0", 0), ("c0", 1), ("c1", 0), ("c1", 1)}
    rows = {name: unit.features["patches"][:, 0, 0].tolist() for name, unit in units.items()}
    assert rows == {("c0", 0): [0], ("c0", 1): [2, 3], ("c1", 0): [4], ("c1", 1): [5]}
    assert units["c0", 0].errors == {"c0/1.png": "broken"}
    assert units["c0", 0].all_image_ids == ["c0/0.png", "c0/1.png"]
