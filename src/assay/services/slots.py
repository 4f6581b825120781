"""The devices of this machine as slots: one worker owns one slot, and a run in it sees that device alone."""

import os
from dataclasses import dataclass
from pathlib import Path

from assay.devices import available_cores
from assay.params import ServicesParams

POOLS = ("cpu", "gpu", "tpu")
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "TPU_VISIBLE_CHIPS": ""}
DEVICE_VARIABLES = tuple(_HIDDEN)
"""Variables that say which device a process sees; its driver reads them when it is first asked for something."""


@dataclass(frozen=True)
class Slot:
    """One device that one worker owns.

    Attributes:
        pool: ``cpu``, ``gpu`` or ``tpu``.
        index: 0 for the first of its pool.
        device: What the driver calls it: a GPU's or chip's number or UUID; empty for a CPU slot.
    """

    pool: str
    index: int
    device: str = ""

    @property
    def name(self) -> str:
        """Name of the slot and of its worker, e.g. ``gpu-0``."""
        return f"{self.pool}-{self.index}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the worker and its runs, so that they see this device and no other."""
        if self.pool == "gpu":
            return _HIDDEN | {"CUDA_VISIBLE_DEVICES": self.device, "HIP_VISIBLE_DEVICES": self.device}
        if self.pool == "tpu":
            # One process for each chip: without the bounds libtpu waits for the chips of its neighbours.
            return _HIDDEN | {
                "TPU_VISIBLE_CHIPS": self.device,
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
            }
        return _HIDDEN | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def forks(pool: str) -> bool:
    """Whether runs of a pool may be forks of a process that has imported torch.

    Importing torch may take a TPU's chip, and it is Linux that tells of a process's end as of a file's.
    """
    if pool == "tpu":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # another system, an old kernel, or a sandbox that does not allow it
        return False
    return True


def find_slots(params: ServicesParams, dev: Path = Path("/dev"), sys: Path = Path("/sys")) -> tuple[Slot, ...]:
    """Find the slots of this machine, or make as many as the params say.

    Args:
        params: The services section; a number there counts more than what is found.
        dev: Folder of device files.
        sys: Where sysfs is mounted, for AMD GPUs.

    Returns:
        The slots of pool cpu, gpu and tpu, in this order.
    """
    gpus, chips = _find_gpus(dev, sys), _find_chips(dev)
    num_cpu = available_cores() if params.cpu_workers is None else params.cpu_workers
    found = {
        "cpu": [""] * num_cpu,
        "gpu": _that_many(gpus, params.gpu_workers),
        "tpu": _that_many(chips, params.tpu_workers),
    }
    return tuple(Slot(pool, index, device) for pool in POOLS for index, device in enumerate(found[pool]))


def _that_many(found: list[str], wanted: int | None) -> list[str]:
    """The first `wanted` devices, numbered on where fewer were found: a device may be hidden from this process."""
    if wanted is None:
        return found
    return [found[index] if index < len(found) else str(index) for index in range(wanted)]


def _find_gpus(dev: Path, sys: Path) -> list[str]:
    """GPUs that this process may use, as the driver calls them."""
    for variable in _GPU_VARIABLES:
        named = os.environ.get(variable)
        if named is not None:
            return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1", "void", "none")]
    nvidia = sorted(int(file.name[6:]) for file in dev.glob("nvidia[0-9]*") if file.name[6:].isdigit())
    if nvidia:
        return [str(index) for index in range(len(nvidia))]
    if (dev / "dxg").exists():  # Windows Subsystem for Linux: one adapter, not counted by files
        return ["0"]
    if (dev / "kfd").exists():
        nodes = (sys / "class/kfd/kfd/topology/nodes").glob("*/properties")
        num_gpus = sum(_has_compute_units(file) for file in nodes)
        return [str(index) for index in range(num_gpus)]
    return []


def _find_chips(dev: Path) -> list[str]:
    """TPU chips: /dev/accelN before v5, /dev/vfio/N since."""
    named = os.environ.get("TPU_VISIBLE_CHIPS")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    files = [*dev.glob("accel[0-9]*")] or [file for file in (dev / "vfio").glob("[0-9]*") if file.name.isdigit()]
    return [str(index) for index in range(len(files))]


def _has_compute_units(properties: Path) -> bool:
    """Whether a node of the AMD driver's topology is a GPU; CPUs have no SIMD units."""
    try:
        lines = properties.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("simd_count ") and line.split()[1] != "0" for line in lines)
