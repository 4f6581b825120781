import os
import subprocess
import sys
from pathlib import Path

import pytest

from assay import devices
from assay.devices import Compute, available_cores, may_have_accelerator, resolve
from assay.errors import DeviceError
from assay.params import DeviceParams

PLAIN = not may_have_accelerator()
plain_machine = pytest.mark.skipif(not PLAIN, reason="this machine may have an accelerator")


@plain_machine
def test_auto_on_a_plain_machine_is_the_cpu_and_torch_stays_out() -> None:
    code = (
        "import sys; from assay.devices import resolve; from assay.params import DeviceParams;"
        "print(resolve(DeviceParams()).device, 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["cpu", "False"]


@plain_machine
@pytest.mark.parametrize("kind", ["cuda", "tpu"])
def test_a_device_that_is_not_there(kind: str) -> None:
    with pytest.raises(DeviceError, match=f"device.kind={kind}: torch finds no such device"):
        resolve(DeviceParams(kind=kind))


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset({"avx2", "avx512_bf16"}))
    assert resolve(DeviceParams(kind="cpu")).precision == "bf16"
    assert resolve(DeviceParams(kind="cpu", precision="fp32")).precision == "fp32"
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset({"avx2"}))
    assert resolve(DeviceParams(kind="cpu")).precision == "fp32"
    with pytest.raises(DeviceError, match=r"device\.precision=bf16: this machine's cpu has no bfloat16"):
        resolve(DeviceParams(kind="cpu", precision="bf16"))


def test_threads() -> None:
    assert resolve(DeviceParams(kind="cpu", num_threads=3)).num_threads == 3
    assert resolve(DeviceParams(kind="cpu")).num_threads == available_cores()


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {}, 64),
        ("0::/job/step\n", {"job/cpu.max": "250000 100000"}, 2),
        ("0::/job\n", {"job/cpu.max": "max 100000"}, 64),
        ("0::/job\n", {"job/cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/box\n", {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/box\n", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_cores_follow_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group)
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content)
    assert available_cores(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_signs_of_an_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*devices._GPU_VARIABLES, *devices._TPU_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    assert not may_have_accelerator(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not may_have_accelerator(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert may_have_accelerator(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "accel0").touch()
    assert may_have_accelerator(tmp_path)


def test_compute_round_trip() -> None:
    assert Compute.from_json(Compute("cpu", "bf16", 2).to_json()) == Compute("cpu", "bf16", 2)


def test_a_step_on_a_pretended_device_mixes_no_devices() -> None:
    command = [sys.executable, "-m", "tests.training.pretended_device"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a step stays on tpu", "a tensor elsewhere is refused"]
