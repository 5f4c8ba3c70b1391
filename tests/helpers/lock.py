"""Write ``cluster/requirements*.txt``: every package of the image, with the hashes of its files.

    make lock          needs PyPI

The versions are those that are installed here, which the tests have run with. PyTorch, and what only its build with
CUDA needs, are in a file of their own: the build for CPUs comes from PyTorch's own index, with other hashes.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "3.12"  # of the image
PLATFORM = "x86_64-manylinux_2_28"
CUDA = re.compile(r"(torch|torchvision|triton|cuda-|nvidia-)")
CLOUDS = {"aws": "boto3", "gcp": "google-api-python-client"}  # what Ray's launcher needs on the head
HEADER = f"# Written by `make lock` for Python {PYTHON}; install with pip install --no-deps --require-hashes.\n"


def main() -> None:
    installed = {each.name: each.version for each in metadata.distributions() if each.name != "mvad"}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={version}\n" for name, version in installed.items())
        constraints.flush()
        requirements = compiled("pyproject.toml", constraints.name, options=("--all-extras",))
        for name, of_cuda in (("requirements", False), ("requirements-cuda", True)):
            write(name, [each for each in requirements if bool(CUDA.match(each)) == of_cuda])
        for cloud, package in CLOUDS.items():
            write(f"requirements-{cloud}", compiled("-", constraints.name, package))


def compiled(source: str, constraints: str, text: str = "", options: tuple[str, ...] = ()) -> list[str]:
    """Requirements of a file (``-``: of ``text``) and all that they need, each with its hashes."""
    uv = shutil.which("uv") or Path(sys.executable).with_name("uv")
    command = [uv, "pip", "compile", source, "--quiet", *options]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--constraint", constraints]
    command += ["--python-version", PYTHON, "--python-platform", PLATFORM]
    ended = subprocess.run(command, cwd=ROOT, input=text, check=True, stdout=subprocess.PIPE, text=True)
    return re.split(r"\n(?=\S)", ended.stdout.strip())


def write(name: str, requirements: list[str]) -> None:
    (ROOT / f"cluster/{name}.txt").write_text(HEADER + "\n".join(requirements) + "\n")


if __name__ == "__main__":
    main()
