"""The examples in the docstrings of commands run, one after the other, in a folder of their own."""

import doctest
import importlib

import pytest

import mvad
from mvad.commands import COMMANDS


@pytest.mark.usefixtures("ray_local")
def test_examples_of_commands(tmp_path, monkeypatch, sample):
    (tmp_path / "sample").symlink_to(sample)
    monkeypatch.chdir(tmp_path)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    n_examples = 0
    for name in COMMANDS:
        text = importlib.import_module(f"mvad.commands.{name}").__dict__[name].__doc__
        if name == "sample" or ">>>" not in text:
            continue
        examples = parser.get_doctest(text, {"mvad": mvad}, name, None, 0)
        failed, attempted = runner.run(examples)
        assert failed == 0, name
        n_examples += attempted
    assert n_examples >= 8
