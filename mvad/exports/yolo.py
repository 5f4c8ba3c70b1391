"""Regions as YOLO labels: https://docs.ultralytics.com/datasets/detect.

::

    DIR/data.yaml, DIR/classes.txt        the classes: there is one
    DIR/labels/<image id>.txt             one line per region; empty for an image without
    DIR/images                            not written: the place of the images, under the same names
"""

from typing import Any

CLASS = "anomaly"
FACTS = {
    "data.yaml": f"train: images\nval: images\nnames:\n  0: {CLASS}\n".encode(),
    "classes.txt": f"{CLASS}\n".encode(),
}


def yolo_labels(row: dict[str, Any]) -> bytes:
    """Return the labels of an image from its score row: class, and centre and size of the box as shares of the image's.

    There is no confidence: programs that train take five numbers, and a peak of a map is no probability.
    """
    width, height = row["width"], row["height"]
    lines = []
    for region in row["regions"]:
        x, y = region["x"] + region["width"] / 2, region["y"] + region["height"] / 2
        shares = (x / width, y / height, region["width"] / width, region["height"] / height)
        lines.append(" ".join(["0", *(f"{share:.8f}" for share in shares)]) + "\n")
    return "".join(lines).encode()
