"""The machine's state from files and libraries that are made up, and from this machine."""

import ctypes
from types import SimpleNamespace

import pytest

from resnet_deploy.bench import nvml
from resnet_deploy.bench.machine import MachineWatch, governor
from resnet_deploy.bench.nvml import GpuState, GpuWatch
from resnet_deploy.environment import usable_cpus


class Kernel:
    """A made-up /proc and /sys."""

    def __init__(self, root):
        self.proc, self.system = root / "proc", root / "sys"
        self.proc.mkdir()
        self.cpu = self.system / "devices/system/cpu"
        self.cpu.mkdir(parents=True)

    def tell(self, busy, stolen=0, mhz=(3000.0, 3200.0), heat=None):
        """Ticks of this process's first core; all other cores, which it may not use, are far busier."""
        mine = min(usable_cpus())
        lines = [
            "cpu  9999999 0 0 0 0 0 0 0",
            f"cpu{mine} {busy} 0 0 5 5 0 0 {stolen}",
            f"cpu9{mine} 88888 0 0 0 0 0 0 7",
        ]
        (self.proc / "stat").write_text("\n".join([*lines, "intr 1"]))
        (self.proc / "cpuinfo").write_text("".join(f"processor: 0\ncpu MHz\t\t: {clock}\n" for clock in mhz))
        if heat is not None:
            (self.cpu / "cpu0/thermal_throttle").mkdir(parents=True, exist_ok=True)
            (self.cpu / "cpu0/thermal_throttle/core_throttle_count").write_text(f"{heat}\n")

    def watch(self):
        return MachineWatch(1, proc=self.proc, system=self.system)


@pytest.fixture
def kernel(tmp_path):
    return Kernel(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """Wall clock and this process's processor time, in seconds."""
    now = SimpleNamespace(wall=100.0, own=7.0)
    monkeypatch.setattr("resnet_deploy.bench.machine._TICKS", 100)
    monkeypatch.setattr("time.perf_counter", lambda: now.wall)
    monkeypatch.setattr("os.times", lambda: SimpleNamespace(user=now.own - 2, system=2))
    return now


class TestMachineWatch:
    def test_shares_by_hand(self, kernel, clock):
        kernel.tell(busy=1000, stolen=50)
        watch = kernel.watch()
        clock.wall, clock.own = 102.0, 8.5
        kernel.tell(busy=1170, stolen=70, mhz=(2000.0, 2400.0))
        state = watch.lap(3)
        assert (state.round, state.seconds, state.mhz) == (3, 2.0, 2200.0)
        # In 2 s: 1.5 s are ours; 170 ticks are 1.7 s in all, 20 are 0.2 s stolen.
        assert (state.used, state.elsewhere, state.stolen) == pytest.approx((0.75, 0.1, 0.1))
        clock.wall = 103.0
        assert watch.lap(4).used == 0.0

    def test_heat_is_told_in_the_round_it_came_in(self, kernel, clock):
        kernel.tell(busy=1, heat=5)
        watch = kernel.watch()
        clock.wall += 1
        assert watch.lap(0).throttled == ""
        kernel.tell(busy=1, heat=6)
        clock.wall += 1
        assert watch.lap(1).throttled == "the CPU's temperature"
        clock.wall += 1
        assert watch.lap(2).throttled == ""

    def test_a_system_that_tells_nothing(self, kernel, clock):
        watch = kernel.watch()
        clock.wall += 1
        state = watch.lap(0)
        assert (state.used, state.elsewhere, state.stolen, state.mhz, state.throttled) == (0.0, None, None, None, "")
        assert (state.gpu_mhz, state.gpu_celsius) == (None, None)
        (kernel.proc / "stat").write_text("cpu0 what is this\n")
        clock.wall += 1
        assert watch.lap(1).elsewhere is None

    def test_this_machine(self):
        watch = MachineWatch(1)
        total = sum(number * number for number in range(200_000))
        state = watch.lap(0)
        assert total > 0
        assert state.seconds > 0
        assert state.used > 0


def test_governor(kernel):
    assert governor(kernel.system) == ""
    for number, name in enumerate(("powersave", "performance", "powersave")):
        (kernel.cpu / f"cpu{number}/cpufreq").mkdir(parents=True)
        (kernel.cpu / f"cpu{number}/cpufreq/scaling_governor").write_text(f"{name}\n")
    assert governor(kernel.system) == "performance, powersave"


class Nvml:
    """Plays the library; a function that is in ``lacks`` is not there, one in ``fails`` refuses."""

    def __init__(self, lacks=(), fails=(), reasons=0):
        self.lacks, self.fails, self.reasons = lacks, fails, reasons
        self.asked = []

    def __getattr__(self, name):
        if not name.startswith("nvml") or name in self.lacks:
            raise AttributeError(name)

        def call(*arguments):
            self.asked.append((name, arguments))
            if name in self.fails:
                return 3
            answers = {"nvmlDeviceGetClockInfo": 1410, "nvmlDeviceGetTemperature": 64}
            if name.endswith("Reasons"):
                answers[name] = self.reasons
            if name in answers:
                pointer = arguments[-1]
                kind = ctypes.c_ulonglong if name.endswith("Reasons") else ctypes.c_uint
                ctypes.cast(pointer, ctypes.POINTER(kind)).contents.value = answers[name]
            return 0

        return call


@pytest.fixture
def library(monkeypatch):
    def install(**options):
        played = Nvml(**options)
        monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: played)
        return played

    return install


NEW, OLD = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"


class TestGpuWatch:
    def test_asks_about_the_gpu_that_was_named(self, library):
        played = library()
        assert GpuWatch("1234").now() == GpuState(1410, 64, "")
        assert played.asked[1][1][0] == b"GPU-1234"

    @pytest.mark.parametrize("lacks", [(), (NEW,)], ids=["new driver", "old driver"])
    def test_says_why_clocks_are_held_down(self, library, lacks):
        library(reasons=0x04 | 0x20 | 0x01, lacks=lacks)  # 1: idle, which holds nothing down that runs
        assert GpuWatch("1234").now().throttled == "the GPU's power limit, the GPU's temperature (driver)"

    @pytest.mark.parametrize("options", [{"fails": ("nvmlInit_v2",)}, {"fails": ("nvmlDeviceGetHandleByUUID",)}])
    def test_a_library_that_refuses_is_asked_no_more(self, library, options):
        played = library(**options)
        watch = GpuWatch("1234")
        before = len(played.asked)
        assert watch.now() == GpuState()
        assert len(played.asked) == before

    def test_what_the_driver_does_not_tell_is_none(self, library):
        library(fails=("nvmlDeviceGetClockInfo", NEW), lacks=("nvmlDeviceGetTemperature", OLD))
        assert GpuWatch("1234").now() == GpuState()

    def test_without_a_library_or_a_gpu(self, library):
        assert GpuWatch("1234", library="no-such-library.so").now() == GpuState()
        played = library()
        assert GpuWatch("").now() == GpuState()
        assert played.asked == []

    def test_its_state_is_the_rounds(self, library, kernel, clock):
        library(reasons=0x40)
        watch = MachineWatch(1, "1234", proc=kernel.proc, system=kernel.system)
        clock.wall += 1
        state = watch.lap(0)
        assert (state.gpu_mhz, state.gpu_celsius) == (1410, 64)
        assert state.throttled == "the GPU's temperature (hardware)"
