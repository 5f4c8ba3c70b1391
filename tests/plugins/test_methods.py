"""Methods of other packages: found by their entry points, and left out in one sentence where they cannot be used."""

import json
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer import Option

from helpers.plugins import install, run_python
from mvad.detectors import KNN, METHODS, Detector, PatchCore, Scores
from mvad.features.kinds import KINDS
from mvad.plugins import Methods, checks
from mvad.plugins.checks import check_method, check_params, own_options

CODE = '''
from typing import Annotated
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer import Option
from mvad.detectors import Detector, Scores

class Mine(Detector):
    method, feature = "mine", "pooled"

    @dataclass(frozen=True, kw_only=True)
    class Params(Detector.Params):
        """Mine"""
        strength: Annotated[float, Field(gt=0), Option(help="How strong.")] = 2.0

    def fit(self, features):
        self.mean = features.mean(dim=0).numpy()
        return self

    @property
    def arrays(self):
        return {"mean": self.mean}

    def restore(self, state, device):
        self.mean = state.arrays["mean"]

    def score(self, features):
        return Scores(self.params.strength * np.abs(features.numpy() - self.mean).mean(axis=1), None)
'''
# Fits, stores and scores with a method that the process has not imported.
ROUND_TRIP = """
import json, sys
import numpy as np, torch
from mvad.detectors import State, find_method
from mvad.options import RunOptions, build
options = build(RunOptions, {"method": "mine", "strength": 3.0})
detector = find_method("mine").from_options(options).fit(torch.ones(4, 3))
settings = json.loads(json.dumps(detector.settings))
loaded = find_method("mine").from_state(State(settings, detector.arrays))
print(loaded.score(torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 3.0]])).image.tolist())
"""


class Mine(Detector):
    method, feature, arrays = "mine", "pooled", None

    def fit(self, features):
        return self

    def restore(self, state, device):
        pass

    def score(self, features):
        return Scores(np.zeros(len(features), np.float32), None)


@pytest.fixture
def installed(tmp_path):
    install(tmp_path, "mvad-mine", CODE, mine="mvad_mine:Mine")
    return tmp_path


def test_an_installed_method_is_one_of_the_command_line(installed):
    shown = run_python(installed, "-m", "mvad", "run", "--method", "mine", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--strength" in shown.stdout
    assert "How strong. [default: 2.0]" in " ".join(shown.stdout.split())
    unknown = run_python(installed, "-m", "mvad", "run", "x", "--out", "y", "--method", "his")
    assert unknown.stderr.endswith("'vae', 'vae-fewshot' or 'mine'.\n")
    wrong = run_python(installed, "-m", "mvad", "run", "x", "--out", "y", "--method", "mine", "--strength", "0")
    assert (wrong.returncode, wrong.stderr) == (2, "mvad: --strength 0.0 must be above 0.\n")


def test_an_installed_method_fits_and_scores(installed):
    ended = run_python(installed, "-c", ROUND_TRIP)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [0.0, 3.0]


def test_the_module_of_a_method_may_be_imported_first_and_nodes_compare_its_version(installed):
    """As workers of Ray do when they get a detector."""
    code = """
import mvad_mine
from mvad.detectors import METHODS
from mvad.runtime import node_check
from mvad.runtime.versions import versions
print(METHODS["mine"] is mvad_mine.Mine)
here = node_check.installed_versions()
print(versions()["mvad-mine"], here["mvad-mine"])
print(node_check.mismatches(here, {**here, "mvad-mine": "none"}))
"""
    ended = run_python(installed, "-c", code)
    assert (ended.stdout, ended.stderr) == ("True\n1.2 1.2\n['mvad-mine']\n", "")


BROKEN = {  # package: its code, its method, and why that is left out
    "a-import": ("import nowhere_at_all", "one", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "b-exit": ("import sys; sys.exit('no licence')", "two", "SystemExit: no licence"),
    "c-syntax": ("def f(:", "three", "SyntaxError: "),
    "d-class": ("Yours = 1", "four", "AttributeError: "),
    "e-detector": ("Mine = int", "five", "it is no subclass of mvad.detectors.Detector"),
    "f-name": (CODE, "knn", "there is a method of that name already"),
    "g-option": (CODE.replace("strength", "coreset_ratio"), "mine", "its option --coreset-ratio exists already"),
}


def test_methods_that_cannot_be_used_are_a_sentence_each_and_break_no_command(tmp_path):
    for package, (code, name, _) in BROKEN.items():
        install(tmp_path, package, code, **{name: f"{package.replace('-', '_')}:Mine"})
    ended = run_python(tmp_path, "-m", "mvad", "sample", "data")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "data/weave").is_dir()
    said = {line.split(" of ")[1].split()[0]: line for line in ended.stderr.splitlines() if "left out" in line}
    for package, (_, name, reason) in BROKEN.items():
        assert said.pop(package).startswith(f"warning: the method {name!r} of {package} 1.2 is left out: {reason}")
    assert not said
    assert "Traceback" not in ended.stderr


def test_of_two_packages_with_a_method_of_one_name_the_first_counts(installed):
    install(installed, "other", CODE, mine="other:Mine")
    code = "from mvad.detectors import METHODS; print(METHODS['mine'].__module__, len(METHODS))"
    ended = run_python(installed, "-c", code)
    assert ended.stdout == f"mvad_mine {len(METHODS) + 1}\n"
    assert ended.stderr == (
        "warning: the method 'mine' of other 1.2 is left out: there is a method of that name already\n"
    )


def test_a_method_of_a_package_may_inherit_from_one_of_mvad(tmp_path):
    code = '''
from typing import Annotated
from pydantic.dataclasses import dataclass
from typer import Option
from mvad.detectors import KNN, PatchCore

class Plain(KNN):
    method = "plain"

class Further(PatchCore):
    method = "further"

    @dataclass(frozen=True, kw_only=True)
    class Params(PatchCore.Params):
        """Further"""
        distance_power: Annotated[int, Option(help="Power.")] = 2
'''
    install(tmp_path, "mvad-heirs", code, plain="mvad_heirs:Plain", further="mvad_heirs:Further")
    shown = run_python(tmp_path, "-m", "mvad", "fit", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count("--distance-power") == shown.stdout.count("--coreset-ratio") == 1
    unknown = run_python(tmp_path, "-m", "mvad", "fit", "x", "--models", "y", "--method", "his")
    assert unknown.stderr.endswith("'vae-fewshot', 'further' or 'plain'.\n")


def params(base=Detector.Params, frozen=True, **fields):
    annotations = {name: hint for name, (hint, _) in fields.items()}
    namespace = {"__annotations__": annotations, **{name: default for name, (_, default) in fields.items()}}
    return dataclass(frozen=frozen, kw_only=True)(type("Params", (base,), namespace))


HELP = Option(help="What it is.")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"power": (Annotated[int, Field(ge=1)], 1)}, "power needs a typer.Option with help"),
        ({"power": (int, 1)}, "power needs a typer.Option with help"),
        ({"power": (Annotated[dict[str, int], HELP], None)}, "power is no number, text, switch or choice"),
        ({"image_size": (Annotated[int, HELP], 1)}, "--image-size exists already"),
        ({"augment": (Annotated[bool, HELP], False)}, "--augment exists already"),
        ({"out": (Annotated[str, HELP], "")}, "--out exists already"),
        ({"neighbours": (Annotated[int, HELP], 1)}, "--neighbours exists already"),
        ({"norms": (Annotated[bool, Option("--norms/--no-norm", help="x")], False)}, "--norm exists already"),
    ],
)
def test_parameters_that_cannot_be_options_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        check_params(params(**fields), METHODS.params)


def test_parameters_that_can_be_options_are_accepted():
    choices = Annotated[Literal["a", "b"] | None, HELP]
    pairs = Annotated[list[int] | None, Option(help="Some.", metavar="A,B")]
    check_params(params(power=(Annotated[int | None, HELP], None), kind=(choices, None), pairs=(pairs, None)), [])
    check_params(KNN.Params, METHODS.params)


def test_parameters_without_a_default_or_with_that_of_another_class_are_refused():
    needed = dataclass(frozen=True, kw_only=True)(type("Params", (Detector.Params,), {"__annotations__": {"x": int}}))
    with pytest.raises(ValueError, match="x"):
        check_params(needed, [])
    with pytest.raises(ValueError, match="coreset_ratio is one of the class that it inherits from"):
        check_params(params(PatchCore.Params, coreset_ratio=(Annotated[float, HELP], 0.2)), [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "yours"}, "the name 'yours'; give both the same"),
        ({"feature": "colours"}, "its feature is none of patches, stages, pooled, pixels"),
        ({"Params": int}, "no subclass of those of Detector"),
        ({"score": Detector.score}, "its class lacks score"),
    ],
)
def test_classes_that_are_no_methods_are_refused(changes, reason):
    check_method(Mine, "mine", Detector, KINDS)
    with pytest.raises(ValueError, match=reason):
        check_method(type("Changed", (Mine,), changes), "mine", Detector, KINDS)


def test_a_name_that_is_no_word_is_refused():
    with pytest.raises(ValueError, match="lower-case letters"):
        check_method(type("Loud", (Mine,), {"method": "My Own"}), "My Own", Detector, KINDS)


def test_without_packages_the_methods_are_those_of_mvad():
    own = {"patchcore": PatchCore, "knn": KNN}
    methods = Methods(own, Detector, KINDS)
    assert dict(methods) == own
    assert methods.params == [PatchCore.Params, KNN.Params]


def test_options_that_are_read_from_the_source_are_those_of_the_commands():
    from typer.main import get_command

    from mvad.cli import application

    shown = {parameter.name for command in get_command(application()).commands.values() for parameter in command.params}
    of_methods = {name for kind in METHODS.params for name in kind.__dataclass_fields__}
    assert shown - of_methods <= own_options()
    assert own_options() - checks.OTHER_OPTIONS <= shown | {"folder"}
