"""What the tests of detectors share."""

import json

import numpy as np

from mvad.detectors import METHODS, State


def through_disk(detector):
    """The detector that a model on disk gives back: from JSON settings and read-only arrays."""
    settings = json.loads(json.dumps(detector.settings))
    arrays = {name: array.copy() for name, array in detector.arrays.items()}
    for array in arrays.values():
        array.setflags(write=False)
    return METHODS[detector.method].from_state(State(settings, arrays))


def check_bounds(detector, test):
    """Bounded scores of images, also one by one, are the exact ones, and bounds can be settled to the exact grid."""
    together, bounded = detector.score(test), detector.bounded(test)
    np.testing.assert_array_equal(bounded.image, together.image)
    assert (bounded.grid >= together.grid * (1 - 1e-5)).all()
    assert (bounded.grid.max(axis=(1, 2)) <= together.grid.max(axis=(1, 2)) * (1 + 1e-5)).all()
    for number in range(len(test)):
        for alone in (detector.score(test[number : number + 1]), detector.bounded(test[number : number + 1])):
            np.testing.assert_array_equal(alone.image, together.image[number : number + 1])
        settled = detector.settle(test[number], bounded.grid[number], np.ones(test.shape[1:3], bool))
        np.testing.assert_array_equal(settled, together.grid[number])
