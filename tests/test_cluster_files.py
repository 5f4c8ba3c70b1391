"""Files in ``cluster/`` are valid for the programs that read them, and open nothing to the internet."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from helpers import kuberay_fields, lock
from helpers.tiles import ROOT
from mvad.cli import application

CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
LAUNCHERS = ("aws", "gcp")
MANIFESTS = ("rayjob", "cronjob")
KUBERNETES = "1.34"


def documents(name):
    """The documents of a manifest, with those that it holds as text."""
    found = list(yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()))
    inner = [yaml.safe_load(text) for each in found if each["kind"] == "ConfigMap" for text in each["data"].values()]
    return found + inner


def ray_job(name):
    (job,) = [each for each in documents(name) if each["kind"] == "RayJob"]
    return job


def pod_templates(name):
    if name == "cronjob":
        (cron,) = [each for each in documents(name) if each["kind"] == "CronJob"]
        yield cron["spec"]["jobTemplate"]["spec"]["template"]
    cluster = ray_job(name)["spec"]["rayClusterSpec"]
    yield ray_job(name)["spec"]["submitterPodTemplate"]
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])


def launcher(name):
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def tool(name):
    """A program that came with a package into the folder of this Python."""
    place = Path(sys.executable).with_name(name)
    return str(place) if place.exists() else shutil.which(name)


def lint(*command):
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# ------------------------------------------------------------------------------------------------ virtual machines


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_file_is_valid_for_ray(name):
    from ray.autoscaler._private import util

    prepared = util.prepare_config(launcher(name))
    util.validate_config(prepared)
    util.check_legacy_fields(prepared)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launched_cluster_costs_nothing_when_idle_and_is_shut_to_the_world(name):
    config = launcher(name)
    head = config["available_node_types"][config["head_node_type"]]
    workers = [each for each in config["available_node_types"].values() if each is not head]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert [each["min_workers"] for each in workers] == [0]
    assert all(each["resources"]["GPU"] > 0 for each in workers)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 " in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--num-cpus=0" in starts[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "0.0.0.0" not in (CLUSTER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launched_nodes_get_this_source_and_only_files_with_hashes(name):
    config = launcher(name)
    mounted = {place for place in config["file_mounts"].values() if not place.startswith("~")}
    assert {"mvad", "jobs", "cluster", "pyproject.toml", "README.md"} == mounted
    assert all((ROOT / place).exists() for place in mounted)
    commands = config["setup_commands"] + config["head_setup_commands"]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 3
    for install in installs:
        assert "--no-deps" in install
        files = re.findall(r"~/mvad-source/(cluster/\S+)", install)
        assert ("--require-hashes" in install and files) or install.endswith("~/mvad-source")
        assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_readme_fills_in_every_word(name):
    (fill,) = re.findall(rf"\n(sed (?:(?!sed ).)*? cluster/{name}\.yaml) > my-cluster\.yaml", README, flags=re.S)
    values = {"REGION": "eu-1", "GROUP": "sg-1", "AMI": "ami-1", "PROJECT": "plant", "ZONE": "eu-1-a"}
    environment = {**os.environ, **values}
    filled = subprocess.run(
        ["bash", "-c", fill], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    text = json.dumps(yaml.safe_load(filled))
    left = set(re.findall(r"(?<![\w$])[A-Z][A-Z_]{2,}(?!\w)", text)) - {
        "RAY_AUTH_MODE",
        "RAY_USAGE_STATS_ENABLED",
        "PATH",
        "HOME",
        "README",
    }
    assert left <= {"CPU", "GPU", "PERSISTENT", "ONE_TO_ONE_NAT", "NAT", "SPOT", "DELETE", "TERMINATE"}
    unfilled = json.dumps(launcher(name))
    assert left | {"REGION"} <= set(re.findall(r"(?<![\w$])[A-Z][A-Z_]{2,}(?!\w)", unfilled))


def test_aws_accepts_the_machines_and_no_group_open_to_the_world_is_made(tmp_path, monkeypatch):
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private import util
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    (tmp_path / ".ssh").mkdir()
    for variable, value in (
        ("HOME", str(tmp_path)),  # a new key is written below it
        ("AWS_ACCESS_KEY_ID", "none"),
        ("AWS_SECRET_ACCESS_KEY", "none"),
    ):
        monkeypatch.setenv(variable, value)
    region = "eu-central-1"
    with mock_aws():
        machines, identity = boto3.resource("ec2", region), boto3.client("iam", region)
        (network,) = machines.vpcs.all()
        group = machines.create_security_group(GroupName="mvad", Description="mvad", VpcId=network.id)
        for profile in ("mvad-head", "mvad-worker"):
            identity.create_instance_profile(InstanceProfileName=profile)
        image = next(iter(machines.images.limit(1))).id
        text = (CLUSTER / "aws.yaml").read_text()
        for word, value in {"REGION": region, "AMI": image, "SECURITY_GROUP": group.id}.items():
            text = text.replace(word, value)
        config = AWSNodeProvider.bootstrap_config(util.prepare_config(yaml.safe_load(text)))
        provider = AWSNodeProvider(config["provider"], "mvad")
        calls = set()  # of what the autoscaler on the head does with its role
        for client in (provider.ec2.meta.client, provider.ec2_fail_fast.meta.client):
            client.meta.events.register("before-call.ec2", lambda model, **_: calls.add(f"ec2:{model.name}"))
        for name, node_type in config["available_node_types"].items():
            provider.create_node(node_type["node_config"], {"ray-user-node-type": name}, 1)
        nodes = provider.non_terminated_nodes({})
        provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
        provider.non_terminated_nodes({})
        made = {each.instance_type: each for each in machines.instances.all()}
        assert set(made) == {"m7i.2xlarge", "g6.2xlarge"}
        for machine in made.values():
            assert [each["GroupId"] for each in machine.security_groups] == [group.id]
            assert machine.metadata_options["HttpTokens"] == "required"
        assert made["g6.2xlarge"].iam_instance_profile["Arn"].endswith("/mvad-worker")
        ranges = [
            span["CidrIp"]
            for each in machines.security_groups.all()
            for rule in each.ip_permissions
            for span in rule["IpRanges"]
        ]
        assert "0.0.0.0/0" not in ranges
        assert {each.group_name for each in machines.security_groups.all()} == {"default", "mvad"}
        provider.terminate_nodes(nodes)
    policy = re.search(r"^start='(.*?)'$", README.replace("'$ACCOUNT'", "1"), flags=re.S | re.M).group(1)
    allowed = [statement for statement in json.loads(f"[{policy}]") if "iam:PassRole" not in statement["Action"]]
    actions = {action for statement in allowed for action in list_of(statement["Action"])}
    assert {call for call in calls if not call.startswith("ec2:Describe")} == actions - {"ec2:Describe*"}
    ours = {"ec2:ResourceTag/ray-cluster-name": "mvad"}  # nobody else's machines are changed or ended
    conditions = [statement.get("Condition", {}).get("StringEquals") for statement in allowed]
    assert conditions == [None, {"ec2:CreateAction": "RunInstances"}, ours]


def list_of(value):
    return value if isinstance(value, list) else [value]


# ------------------------------------------------------------------------------------------------ Kubernetes


def unknown_fields(value, allowed, place=""):
    """Where a manifest has a field that is not in the list."""
    if allowed is None or allowed == kuberay_fields.POD:
        return []
    if isinstance(value, list):
        return [each for item in value for each in unknown_fields(item, allowed, place)]
    found = [f"{place}.{name}" for name in value if name not in allowed]
    for name in set(value) & set(allowed):
        found += unknown_fields(value[name], allowed[name], f"{place}.{name}")
    return found


def test_unknown_fields_are_found():
    spec = {"entrypoint": "x", "rayClusterSpec": {"workerGroupSpecs": [{"template": {"any": 1}, "replica": 2}]}}
    assert unknown_fields(spec, kuberay_fields.RAY_JOB) == [".rayClusterSpec.workerGroupSpecs.replica"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_job_has_only_fields_of_the_operator(name):
    job = ray_job(name)
    assert job["apiVersion"] == "ray.io/v1"
    assert unknown_fields(job["spec"], kuberay_fields.RAY_JOB) == []
    text = json.dumps(job)
    for field, values in kuberay_fields.VALUES.items():
        assert set(re.findall(rf'"{field}": "(\w+)"', text)) <= values, field
    rules = job["spec"].get("deletionStrategy")
    # The operator refuses both at once.
    assert bool(rules) != bool(job["spec"].get("shutdownAfterJobFinishes"))
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", MANIFESTS)
def test_everything_else_is_valid_for_kubernetes(name):
    for document in documents(name):
        if document["kind"] != "RayJob":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for template in pod_templates(name):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "it"}, "template": template}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_job_runs_a_command_that_exists(name):
    words = ray_job(name)["spec"]["entrypoint"].split()
    repeated = ray_job(name)["spec"]["backoffLimit"] > 0
    *program, command = words[: 3 if repeated else 2]
    # What is done, with exit code 3 or 4, is not done again on a new cluster.
    assert program == (["python", "/app/unattended.py"] if repeated else ["mvad"])
    arguments = words[len(program) + 1 :]
    known = {option for parameter in get_command(application()).commands[command].params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_bounded_not_root_and_end_when_done(name):
    templates = list(pod_templates(name))
    assert len(templates) >= 2
    for template in templates:
        pod = template["spec"]
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert limits.get("nvidia.com/gpu") == requests.get("nvidia.com/gpu")
            assert {"cpu", "memory"} <= set(limits) & set(requests)
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert re.search(r":v?\d+\.\d+", container["image"]), "an image without a version"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.get("automountServiceAccountToken") is False or pod["serviceAccountName"] == "mvad-nightly"


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_cluster_asks_for_a_token_and_no_service_leaves_it(name):
    assert not re.search(
        r'LoadBalancer|NodePort|hostNetwork|hostPort|"kind": "Ingress"|privileged', json.dumps(documents(name))
    )
    cluster = ray_job(name)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_network_lets_in_the_cluster_itself_the_submitter_and_the_operator(name):
    (policy,) = [each["spec"] for each in documents(name) if each["kind"] == "NetworkPolicy"]
    labels = policy["podSelector"]["matchLabels"].items()
    submitter, *pods = [each for each in pod_templates(name) if "labels" in each.get("metadata", {})]
    assert all(labels <= pod["metadata"]["labels"].items() for pod in pods)
    assert len(pods) == 2
    inside, outside = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    assert outside["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert {"podSelector": {"matchLabels": submitter["metadata"]["labels"]}} in outside["from"]
    assert not any(source in ({}, {"podSelector": {}}) for source in outside["from"])
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_a_night_has_the_date_of_the_zone_it_starts_in():
    (cron,) = [each for each in documents("cronjob") if each["kind"] == "CronJob"]
    (head,) = ray_job("cronjob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "TZ", "value": cron["spec"]["timeZone"]} in head["env"]


@pytest.mark.parametrize(("ended", "code"), [(0, 0), (3, 0), (4, 0), (1, 1), (2, 2), (143, 143)])
def test_what_is_done_is_not_started_again(monkeypatch, ended, code):
    monkeypatch.setattr("mvad.__main__.main", lambda: sys.exit(ended))
    try:
        runpy.run_path(str(CLUSTER / "unattended.py"))
        found = 0
    except SystemExit as end:
        found = end.code
    assert found == code


def test_ray_of_the_manifests_is_one_that_mvad_accepts():
    from packaging.requirements import Requirement

    found = re.search(r'"(ray\[.*?)"', (ROOT / "pyproject.toml").read_text()).group(1)
    for name in MANIFESTS:
        assert ray_job(name)["spec"]["rayClusterSpec"]["rayVersion"] in Requirement(found).specifier


def test_one_run_and_the_nightly_one_have_the_same_cluster():
    first, second = (ray_job(name)["spec"]["rayClusterSpec"] for name in MANIFESTS)
    assert first == second


def test_two_nights_never_run_at_once_and_only_ray_jobs_may_be_made():
    assert ray_job("cronjob")["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert "generateName" in ray_job("cronjob")["metadata"]
    (role,) = [each for each in documents("cronjob") if each["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    (cron,) = [each for each in documents("cronjob") if each["kind"] == "CronJob"]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


# ------------------------------------------------------------------------------------------------ image, script, text


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint has no package for this machine")
def test_image_passes_the_linter():
    lint(tool("hadolint"), CLUSTER / "Dockerfile")


def test_image_is_well_made():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001:10001"
    assert not any(line.startswith("ADD ") or "latest" in line for line in lines)
    (version,) = [line for line in lines if line.startswith("ARG PYTHON_VERSION=")]
    assert re.fullmatch(r"ARG PYTHON_VERSION=3\.\d+\.\d+", version)
    froms = [line for line in lines if line.startswith("FROM ")]
    assert all(line.startswith("FROM python:${PYTHON_VERSION}-slim-") for line in froms)
    dependencies, source = (
        next(n for n, line in enumerate(lines) if text in line) for text in ("torch==", "COPY mvad")
    )
    assert "ENV HF_HUB_DISABLE_TELEMETRY=1 ORT_DISABLE_TELEMETRY=1 RAY_USAGE_STATS_ENABLED=0" in lines
    assert dependencies < source, "a change of the source would install PyTorch again"


def locked(name):
    """Packages of a list, and their versions; every one has a hash."""
    text = (CLUSTER / f"{name}.txt").read_text()
    requirements = [each for each in re.split(r"\n(?=\S)", text.strip()) if not each.startswith("#")]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", each) for each in requirements)
    return dict(re.match(r"([\w.-]+)==([\w.]+) ", each).groups() for each in requirements)


def test_the_image_has_all_dependencies_each_with_a_hash():
    from packaging.requirements import Requirement

    found = locked("requirements") | locked("requirements-cuda")
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"\n(?:dependencies|serve) = \[\n(.*?)\n\]", text, flags=re.S)
    assert len(lists) == 2
    for requirement in (Requirement(line.strip(' ",')) for line in "\n".join(lists).splitlines()):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": lock.PYTHON}):
            assert found[requirement.name] in requirement.specifier, f"{requirement}: run make lock"
    text = (CLUSTER / "Dockerfile").read_text()
    for package in ("torch", "torchvision"):
        assert f"ARG {package.upper()}_VERSION={found[package]}\n" in text
    installs = re.findall(r"pip install [^\\&;\n]+", text)
    assert len(installs) == 4
    assert all(re.search(r"--require-hashes|\$TORCH_INDEX| \. $", each) for each in installs), installs
    for cloud in LAUNCHERS:
        both = found.keys() & locked(f"requirements-{cloud}").keys()
        assert {name: found[name] for name in both} == {name: locked(f"requirements-{cloud}")[name] for name in both}


def test_image_gets_the_files_it_copies():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = {
        place
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for place in line.split()[1:-1]
        if not place.startswith("--")
    }
    allowed = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert (
        copied
        == allowed
        == {
            *("pyproject.toml", "README.md", "LICENSE", "mvad", "jobs"),
            *("cluster/requirements.txt", "cluster/requirements-cuda.txt", "cluster/unattended.py"),
        }
    )
    assert all((ROOT / place).exists() for place in copied)


def test_weights_of_the_image_can_be_read():
    text = (CLUSTER / "Dockerfile").read_text()
    code = re.search(r"RUN python -c \"(import sys; from mvad.*?)\"\n", text, flags=re.S).group(1)
    exec(code.replace("\\\n", "").replace("$WEIGHTS", "efficientnet_lite0"), {})


def test_script_is_well_made():
    lint("bash", "-n", CLUSTER / "local.sh")
    lint(tool("shellcheck"), CLUSTER / "local.sh")
    assert os.access(CLUSTER / "local.sh", os.X_OK)
    assert "ray stop" not in (CLUSTER / "local.sh").read_text()


def test_readme_names_files_and_commands_that_exist():
    for name in re.findall(r"cluster/([\w.]+\w)", README):
        assert (CLUSTER / name).exists(), name
    commands = get_command(application()).commands
    assert set(re.findall(r"jobs/(\w+)\.py", README)) <= set(commands)
    assert set(re.findall(r"python -m mvad ([a-z-]+)", README)) <= set(commands)
    assert not re.search(r"/work/|/root/|/tmp/", "".join(p.read_text() for p in CLUSTER.iterdir() if p.suffix != ".sh"))
