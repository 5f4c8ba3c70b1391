"""The layout of the package: no circles of imports, folders of a readable size, light imports, short recipes."""

import ast
import importlib.util
import itertools
import json
import subprocess
import sys
from collections import defaultdict, deque

import pytest

import mvad
from helpers.tiles import ROOT

PACKAGE = ROOT / "mvad"
FILES = sorted(PACKAGE.rglob("*.py"))
MIN_MODULES, MAX_MODULES = 2, 10
OTHER_SIZES = {"mvad/commands": "one file per command"}  # folder: why it has fewer or more modules
MAX_RECIPE_LINES = 40
HEAVY = ("torch", "torchvision", "timm", "ray", "scipy", "sklearn", "faiss")
LIGHT_MODULES = ("mvad.options", "mvad.cli", "mvad.console", "mvad.model_store", "mvad.results")
LIGHT_FOLDERS = ("calibration", "commands", "data", "detectors", "storage")
WITHOUT_NETWORKS = (  # that a driver imports, which need not import PyTorch: actors and tasks do
    "mvad.commands.fit",
    "mvad.commands.run",
    "mvad.commands.score",
    "mvad.features.known",
    "mvad.features.specs",
    "mvad.features.weights",
    "mvad.fitting.fit",
    "mvad.fitting.scheduler",
    "mvad.fitting.tasks",
    "mvad.pipeline.dataset",
    "mvad.runtime.session",
    "mvad.scoring.jobs",
    "mvad.scoring.score",
)
# What processes that decode, score and write import, each of its own: not what only a command line needs.
IN_WORKERS = (
    "mvad.pipeline.bit_depths",
    "mvad.pipeline.dataset",
    "mvad.pipeline.image_sizes",
    "mvad.runtime.stage_totals",
    "mvad.scoring.left_out",
    "mvad.scoring.score",
    "mvad.scoring.write",
)
OF_COMMAND_LINES = ("mvad.options", "mvad.console", "rich", "duckdb", "sklearn")
NETWORKS = ("mvad.detectors.networks", "mvad.detectors.training")  # imported when a network is trained or used
# Imports each module while none of the heavy ones can be imported, and prints those that fail, with the place.
IMPORT_LIGHT = """
import importlib, json, sys, traceback
modules, heavy, package = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(heavy))
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)]
        place = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else error
        print(f"{module} is not light: {place}")
"""


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree):
    """Every node that runs: all but the bodies of ``if TYPE_CHECKING``."""
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        only_types = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        waiting.extend(node.orelse if only_types else ast.iter_child_nodes(node))


def imported_modules(file):
    """The modules of mvad that a file imports, also inside functions: (module, line)."""
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            modules = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((module, node.lineno) for module in modules if module.split(".")[0] == "mvad")


def room_of(module):
    """The folder or top-level module of mvad that a module, or a name in it, belongs to; ``mvad`` for the package."""
    room = module.split(".")[1] if "." in module else ""
    return room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists() else ""


def shortest_way(imports, start, end):
    """The rooms on the shortest way of imports from one room to another, both included; None if there is no way."""
    ways = {start: (start,)}
    waiting = deque([start])
    while waiting and end not in ways:
        room = waiting.popleft()
        for other in sorted(imports[room].keys() - ways.keys()):
            ways[other] = (*ways[room], other)
            waiting.append(other)
    return ways.get(end)


def test_no_rooms_import_each_other_in_a_circle():
    imports = defaultdict(dict)  # room: {imported room: where}
    for file in FILES:
        room = room_of(module_name(file))
        for module, line in imported_modules(file):
            other = room_of(module)
            if other != room:
                imports[room].setdefault(other, f"{file.relative_to(ROOT)}:{line}")
    circles = {}
    for room in sorted(imports):
        for other in sorted(imports[room]):
            way = shortest_way(imports, other, room)
            if way is not None:
                circle = (room, *way)
                steps = [f"{b or 'mvad'} ({imports[a][b]})" for a, b in itertools.pairwise(circle)]
                circles.setdefault(frozenset(circle), " -> ".join([room or "mvad", *steps]))
    if circles:
        pytest.fail("circles of imports:\n" + "\n".join(sorted(circles.values(), key=len)), pytrace=False)


def test_every_folder_has_two_to_ten_modules():
    wrong = []
    for folder in sorted({file.parent for file in FILES}):
        count = sum(file.name != "__init__.py" for file in folder.glob("*.py"))
        name = folder.relative_to(ROOT).as_posix()
        if not MIN_MODULES <= count <= MAX_MODULES and name not in OTHER_SIZES:
            wrong.append(f"{name} has {count} modules, not {MIN_MODULES} to {MAX_MODULES}")
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_light_modules_import_nothing_heavy():
    modules = [*LIGHT_MODULES]
    for folder in LIGHT_FOLDERS:
        modules += [module_name(file) for file in sorted((PACKAGE / folder).rglob("*.py"))]
    check_imports([module for module in modules if module not in NETWORKS], HEAVY)


def test_a_driver_does_not_import_pytorch():
    check_imports(WITHOUT_NETWORKS, ("torch", "torchvision", "timm"))


def test_pandas_is_imported_for_tables_alone():
    """These modules of PyArrow import it; so does Ray Data."""
    commands = [f"mvad.commands.{name}" for name in ("evaluate", "fit", "run", "score")]
    check_imports([*commands, "mvad.data.listing", "mvad.in_process.model"], ("pyarrow.dataset", "pyarrow.parquet"))


def test_workers_do_not_import_what_command_lines_need():
    check_imports(IN_WORKERS, OF_COMMAND_LINES)


def check_imports(modules, heavy):
    """Modules can be imported while the heavy ones cannot."""
    arguments = json.dumps([modules, heavy, str(PACKAGE)])
    ended = subprocess.run(
        [sys.executable, "-c", IMPORT_LIGHT, arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode or ended.stdout:
        pytest.fail(ended.stdout.replace(f"{ROOT}/", "") + ended.stderr, pytrace=False)


def test_every_command_is_a_recipe_of_few_lines():
    wrong = []
    for file in sorted((PACKAGE / "commands").glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in mvad.__all__:
                text = node.body[0] if ast.get_docstring(node) is not None else None
                lines = node.end_lineno - node.lineno + 1
                lines -= text.end_lineno - text.lineno + 1 if text else 0
                if lines > MAX_RECIPE_LINES:
                    wrong.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines, not {MAX_RECIPE_LINES}")
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
