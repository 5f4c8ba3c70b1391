"""What each command does, one recipe per file.

The name of a file is that of its function; `COMMANDS` is the one list of them, with an example for ``--help``, which
begins with the name of the command.
"""

COMMANDS = {
    "run": "mvad run mvtec --out results",
    "fit": "mvad fit mvtec --models models",
    "tune": "mvad tune mvtec --models models --budget 10m",
    "score": "mvad score dump --models models --out results",
    "nightly": "mvad nightly --dump incoming --models models --out nights",
    "export_results": "mvad results nights --where \"is_anomaly and category = 'bottle'\" --out rows.csv",
    "compact": "mvad compact nights",
    "watch": "mvad watch incoming --models models --out nights",
    "evaluate": "mvad evaluate results",
    "report": "mvad report results",
    "inspect": "mvad inspect mvtec --out inspect.html",
    "compare": "mvad compare mvtec --out compared --methods patchcore,knn",
    "update": "mvad update new --models models",
    "models": "mvad models models",
    "rollback": "mvad rollback models --category weave",
    "export": "mvad export models/patchcore/bottle --out bottle.onnx",
    "maps": "mvad maps results --to maps",
    "regions": "mvad regions results --format coco --to regions",
    "serve": "mvad serve --models models",
    "false_alarms": "mvad false-alarms mvtec --splits 20",
    "plan": "mvad plan --images 1e8 --gpus 64 --cores 512",
    "doctor": "mvad doctor",
    "sample": "mvad sample sample",
}
# Those that start Ray, unless they are given the address of a cluster.
ON_RAY = [
    *("run", "fit", "tune", "score", "nightly", "watch", "inspect", "compare", "update", "maps", "serve"),
    "false_alarms",
]


def typed_name(name: str) -> str:
    """The name of a command on the command line."""
    return COMMANDS[name].split()[1]
