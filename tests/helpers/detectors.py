"""What the tests of detectors share."""

import json

from mvad.detectors import METHODS, State


def through_disk(detector):
    """The detector that a model on disk gives back: from JSON settings and read-only arrays."""
    settings = json.loads(json.dumps(detector.settings))
    arrays = {name: array.copy() for name, array in detector.arrays.items()}
    for array in arrays.values():
        array.setflags(write=False)
    return METHODS[detector.method].from_state(State(settings, arrays))
