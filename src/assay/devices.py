"""Which device, which precision and how many threads a run computes with.

`resolve` answers without importing torch on a machine that plainly has no accelerator, so that a run key is cheap.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assay.errors import DeviceError
from assay.params import DeviceParams
from assay.records import Record

if TYPE_CHECKING:
    import torch

_ACCELERATOR_FILES = ("nvidia[0-9]*", "nvidiactl", "dxg", "kfd", "accel*", "vfio/[0-9]*")
_TPU_VARIABLES = ("PJRT_DEVICE", "TPU_NAME", "TPU_VISIBLE_CHIPS", "TPU_WORKER_ID")
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Compute(Record):
    """Where and how precisely a run computes.

    Attributes:
        device: ``cpu``, ``cuda`` or ``tpu``.
        precision: ``bf16`` (float32 weights, bfloat16 arithmetic) or ``fp32``.
        num_threads: CPU threads.
    """

    device: str
    precision: str
    num_threads: int


def resolve(params: DeviceParams) -> Compute:
    """Settle what ``auto`` means on this machine.

    Args:
        params: The device section.

    Returns:
        Device, precision and threads, with nothing left open.

    Raises:
        DeviceError: The device is not there, or bf16 was asked for and the hardware lacks it.
    """
    device = _find_device(params.kind)
    has_bf16 = _has_bf16(device)
    if params.precision == "bf16" and not has_bf16:
        raise DeviceError(
            f"device.precision=bf16: this machine's {device} has no bfloat16 arithmetic. "
            "Use device.precision=fp32, or auto."
        )
    precision = params.precision if params.precision != "auto" else ("bf16" if has_bf16 else "fp32")
    return Compute(device, precision, params.num_threads or default_threads())


def torch_device(compute: Compute) -> "torch.device":
    """Return torch's name for the device."""
    import torch

    return torch.device(compute.device)


def may_have_accelerator(dev: Path = Path("/dev")) -> bool:
    """Say whether it is worth importing torch to look for a GPU or TPU.

    Args:
        dev: Folder of device files.

    Returns:
        False only where there is no device file and no variable that names a device.
    """
    if any(True for pattern in _ACCELERATOR_FILES for _ in dev.glob(pattern)):
        return True
    if any(os.environ.get(name) for name in _TPU_VARIABLES):
        return True
    return any(os.environ.get(name, "") not in ("", "-1", "void", "none") for name in _GPU_VARIABLES)


def default_threads() -> int:
    """CPU threads of a run that names no number: the cores it may use, within ``OMP_NUM_THREADS`` where that is set."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(available_cores(), int(wanted)) if wanted.isdigit() and int(wanted) > 0 else available_cores()


def available_cores(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that this process may use: its affinity, within the CPU quota of its control groups.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.

    Returns:
        At least 1; a quota of 1.5 cores counts as 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _cpu_quotas(proc, cgroup))]))


def _find_device(kind: str) -> str:
    if kind == "cpu" or (kind == "auto" and not may_have_accelerator()):
        return "cpu"
    for candidate in ("tpu", "cuda") if kind == "auto" else (kind,):
        if _is_available(candidate):
            return candidate
    if kind == "auto":
        return "cpu"
    raise DeviceError(
        f"device.kind={kind}: torch finds no such device on this machine. Use device.kind=cpu or auto, or install "
        f"the driver and the torch build for {kind}."
    )


def _is_available(device: str) -> bool:
    import torch

    backend = getattr(torch, device, None)
    return bool(backend is not None and backend.is_available() and backend.device_count() > 0)


def _has_bf16(device: str) -> bool:
    if device == "tpu":
        return True
    if device == "cpu":
        return bool(_BF16_FLAGS & _cpu_flags())
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction-set flags of the first core; none where the system does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(found, "").split())


def _cpu_quotas(proc: Path, cgroup: Path) -> list[float]:
    """CPU quotas, in cores, of the process's control groups and all groups above them."""
    quotas = []
    for folder in _group_folders(proc, cgroup):
        words = [
            *_words(folder / "cpu.max"),
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return quotas


def _group_folders(proc: Path, cgroup: Path) -> list[Path]:
    folders = [cgroup, cgroup / "cpu"]
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = cgroup / "cpu" if controllers else cgroup
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [root.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
