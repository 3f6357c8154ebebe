"""What chooses the clocks, as the kernel tells."""

import pytest

from resnet_deploy.bench.machine import governor


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, ""),
        ({"cpu0": "performance\n", "cpu1": "performance\n"}, "performance"),
        ({"cpu0": "powersave\n", "cpu1": "performance\n", "cpu10": "powersave\n"}, "performance, powersave"),
        ({"cpuidle": "menu\n"}, ""),
    ],
    ids=["nobody tells", "one", "two", "not a core"],
)
def test_each_governor_is_named_once(tmp_path, told, expected):
    for core, name in told.items():
        path = tmp_path / "devices/system/cpu" / core / "cpufreq" / "scaling_governor"
        path.parent.mkdir(parents=True)
        path.write_text(name)
    assert governor(tmp_path) == expected
