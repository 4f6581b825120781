"""Devices are found by their files and variables, and each worker sees its own alone."""

from pathlib import Path

import pytest

from assay.params import ServicesParams
from assay.services import slots
from assay.services.slots import Slot, find_slots

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(slots, "available_cores", lambda: 2)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(found: tuple[Slot, ...]) -> list[str]:
    return [slot.name for slot in found]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), ["cpu-0", "cpu-1"]),
        (("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), ["cpu-0", "cpu-1", "gpu-0", "gpu-1"]),
        (("dxg",), ["cpu-0", "cpu-1", "gpu-0"]),
        (("accel0", "accel1"), ["cpu-0", "cpu-1", "tpu-0", "tpu-1"]),
        (("vfio/0", "vfio/1", "vfio/2", "vfio/3", "vfio/vfio"), ["cpu-0", "cpu-1", *(f"tpu-{i}" for i in range(4))]),
    ],
    ids=["none", "nvidia", "wsl", "tpu-v4", "tpu-v5"],
)
def test_device_files_become_slots(tmp_path: Path, files: tuple[str, ...], expected: list[str]) -> None:
    assert names(find_slots(ServicesParams(), make(tmp_path, *files), tmp_path)) == expected


def test_amd_gpus_are_counted_without_the_cpus_beside_them(tmp_path: Path) -> None:
    dev, sys = make(tmp_path / "dev", "kfd"), tmp_path / "sys"
    for node, units in enumerate((0, 304, 304)):
        file = (
            make(sys, f"class/kfd/kfd/topology/nodes/{node}/properties")
            / f"class/kfd/kfd/topology/nodes/{node}/properties"
        )
        file.write_text(f"cpu_cores_count {0 if units else 64}\nsimd_count {units}\n")
    assert names(find_slots(ServicesParams(cpu_workers=0), dev, sys)) == ["gpu-0", "gpu-1"]


def test_only_gpus_that_this_process_may_use_are_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-11c1")
    found = find_slots(ServicesParams(cpu_workers=0), make(tmp_path, "nvidia0", "nvidia1"), tmp_path)
    assert [slot.device for slot in found] == ["3", "MIG-11c1"]
    assert found[1].environment["CUDA_VISIBLE_DEVICES"] == "MIG-11c1"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_not_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert names(find_slots(ServicesParams(cpu_workers=1), make(tmp_path, "nvidia0"), tmp_path)) == ["cpu-0"]


def test_a_number_in_the_params_counts_more_than_what_is_found(tmp_path: Path) -> None:
    params = ServicesParams(cpu_workers=1, gpu_workers=1, tpu_workers=2)
    found = find_slots(params, make(tmp_path, "nvidia0", "nvidia1"), tmp_path)
    assert names(found) == ["cpu-0", "gpu-0", "tpu-0", "tpu-1"]


def test_a_slot_sees_its_own_device_and_no_other() -> None:
    cpu, gpu, tpu = Slot("cpu", 0), Slot("gpu", 1, "5"), Slot("tpu", 0, "2")
    assert {cpu.environment[name] for name in VARIABLES} == {""}
    assert cpu.environment["OMP_NUM_THREADS"] == "1"
    assert gpu.environment["CUDA_VISIBLE_DEVICES"] == gpu.environment["HIP_VISIBLE_DEVICES"] == "5"
    assert gpu.environment["TPU_VISIBLE_CHIPS"] == "" and "OMP_NUM_THREADS" not in gpu.environment
    assert tpu.environment["TPU_VISIBLE_CHIPS"] == "2" and tpu.environment["CUDA_VISIBLE_DEVICES"] == ""
