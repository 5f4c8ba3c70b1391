"""The page and the notebook about Python run, in folders of their own."""

import json
import re

import pytest

from helpers.tiles import ROOT

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")


@pytest.mark.usefixtures("ray_local")
def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), flags=re.S | re.M)
    assert len(blocks) >= 6
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"^anomalous, score [\d.]+, threshold [\d.]+, p-value [\d.]+, ", printed)
    assert names["found"].summary.num_rows == 2


def test_the_notebook_goes_from_a_folder_to_a_plotted_defect(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are made when it runs"
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "missing.png" not in json.dumps(outputs)
    assert "the file does not exist" in json.dumps(outputs)
