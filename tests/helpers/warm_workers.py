"""Ray's workers as forks of one process that has imported PyTorch and what else they need, except Ray itself.

Each actor is a process of its own that takes seconds of a core to import PyTorch, and the tests start hundreds. What a
worker does is the same; tests of whole programs start theirs in the ordinary way. Ray starts this file in the place of
its ``setup_worker.py``; it hands the worker over to the process that forks, and waits for its end.
"""

import array
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager

ADDRESS = "MVAD_WARM_WORKERS"  # variable with the path of the socket of the process that forks
PRELOADED = (  # not Ray, whose connections do not survive a fork
    "jsonschema",
    "mvad.detectors",
    "mvad.features.extractor",
    "mvad.model_store",
    "onnxruntime",
    "pandas",
    "psutil",
    "pyarrow.dataset",
    "requests",
    "torchvision",
    "yaml",
)
PR_SET_PDEATHSIG = 1
SETUP_ARGUMENTS = ("--serialized-runtime-env-context", "--language")  # for ``setup_worker.py`` alone
LENGTH_BYTES = 8


@contextmanager
def warm_workers():
    """While the context lasts, a Ray that this process starts forks its workers; on Linux alone."""
    if sys.platform != "linux":
        yield
        return
    from ray._private.parameter import RayParams

    folder = tempfile.mkdtemp(prefix="mvad-")  # the path of a socket must be short
    address = os.path.join(folder, "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    init = RayParams.__init__

    def init_warm(self, *args, **options):
        init(self, *args, **options)
        self.update_if_absent(setup_worker_path=__file__)

    # One thread of OpenMP each, as Ray tells its workers before they import anything.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, __file__, "--fork"], stdin=listener, env=environment)
    RayParams.__init__ = init_warm
    os.environ[ADDRESS] = address
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        RayParams.__init__ = init
        process.kill()
        process.wait()
        listener.close()
        shutil.rmtree(folder)


def _hand_over(arguments):
    """Let the process that forks run the worker with these arguments; return when the worker has ended."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        job = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        streams = array.array("i", [0, 1, 2])
        connection.sendmsg([len(job).to_bytes(LENGTH_BYTES, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(job)
        connection.recv(1)


def _fork_workers(listener):
    """Fork for each connection; return the arguments in the forked process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those forked
    while True:
        connection, _ = listener.accept()
        length, streams, *_ = socket.recv_fds(connection, LENGTH_BYTES, 3)
        with connection.makefile("rb") as stream:
            job = json.loads(stream.read(int.from_bytes(length, "big")))
        if os.fork():
            connection.close()
            for stream in streams:
                os.close(stream)
            continue
        _die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        connection.detach()  # open until this process ends
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        random.seed()
        return job["arguments"]


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _main(arguments):
    sys.path.pop(0)  # the folder of this file
    if arguments == ["--fork"]:
        _die_with_parent()
        for name in PRELOADED:
            importlib.import_module(name)
        gc.freeze()  # a collection would copy what is shared
        sys.argv = _fork_workers(socket.socket(fileno=os.dup(0)))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        _hand_over([argument for argument in arguments if not argument.startswith(SETUP_ARGUMENTS)])


if __name__ == "__main__":
    _main(sys.argv[1:])
