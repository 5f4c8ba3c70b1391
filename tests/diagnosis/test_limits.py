"""Limits of control groups, of both versions, as a container or a systemd unit sets them."""

import pytest

from mvad.diagnosis.limits import core_limit, memory_limit

V2 = "0::/docker/one\n"
V1 = "11:cpu,cpuacct:/docker/one\n9:memory:/docker/one\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        (V2, {"docker/one/cpu.max": "150000 100000", "docker/one/memory.max": "4294967296"}, 1.5, 4 << 30),
        (V2, {"docker/one/cpu.max": "max 100000", "docker/one/memory.max": "max"}, None, None),
        (V2, {"docker/one/memory.max": "max", "docker/memory.max": "1073741824"}, None, 1 << 30),
        (V2, {"cpu.max": "200000 100000", "memory.max": "2147483648"}, 2.0, 2 << 30),
        (
            V1,
            {
                "cpu/docker/one/cpu.cfs_quota_us": "50000",
                "cpu/docker/one/cpu.cfs_period_us": "100000",
                "memory/docker/one/memory.limit_in_bytes": "3221225472",
            },
            0.5,
            3 << 30,
        ),
        (
            V1,
            {
                "cpu/docker/one/cpu.cfs_quota_us": "-1",
                "cpu/docker/one/cpu.cfs_period_us": "100000",
                "memory/docker/one/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
        (V2, {}, None, None),
        (V2, {"cpu.max": "what?", "memory.max": ""}, None, None),
    ],
)
def test_the_smallest_limit_of_all_groups_counts(tmp_path, groups, files, cores, memory):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert (core_limit(tmp_path), memory_limit(tmp_path)) == (cores, memory)


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert core_limit(tmp_path) is None
    assert memory_limit(tmp_path) is None
