"""One training step on a device that is not there.

Fake tensors carry a device and a shape but no data, and an operation across devices raises. The device is registered
for the whole process, so this runs in one of its own.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from assay.data.augmentation import augment
from assay.devices import Compute, resolve, torch_device
from assay.models.build import build_model
from assay.params import AdamWParams, CropFlipAugmentation, DeviceParams, TrainParams
from assay.training.batches import Batches, to_model_input
from assay.training.loop import _autocast
from assay.training.losses import add_penalty, training_loss
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer
from tests.models.test_cnn import SPEC
from tests.training.tiny import spec_of, tiny_dataset

PARAMS = TrainParams(l1=0.1, l2=0.1, augmentation=CropFlipAugmentation(padding_pixels=2))


class PretendedBackend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 10**9, 10**9


def step(module: torch.nn.Module, compute: Compute, positions: torch.Tensor) -> set[str]:
    device = torch_device(compute)
    master = MasterWeights(module, torch.float32)
    # torch has no fused kernels for a device made of nothing
    optimizer = build_optimizer(master.weights, master.rest, AdamWParams())
    for group in optimizer.param_groups:
        group["fused"] = False
    with tempfile.TemporaryDirectory() as folder:
        dataset, _ = tiny_dataset(Path(folder), shape=(9, 14, 3))
    pixels, labels = Batches(dataset, np.arange(20), device, spec_of(dataset)).take(positions)
    images = to_model_input(augment(pixels, PARAMS.augmentation, torch.Generator()))
    master.refresh()
    with _autocast(compute):
        logits = master.module(images)
    training_loss(logits, labels, PARAMS).backward()
    gradient = master.collect()
    add_penalty(master.weights, gradient[: master.weights.numel()], PARAMS)
    norm = torch.linalg.vector_norm(gradient)
    optimizer.step()
    return {tensor.device.type for tensor in (labels, images, logits, norm, *master.module.parameters())}


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend("tpu", PretendedBackend())
    compute = resolve(DeviceParams(kind="tpu", precision="fp32"))
    module = build_model(SPEC, 0)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            layer._parameters[name] = torch.nn.Parameter(mode.from_tensor(parameter.data).to(compute.device))
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = mode.from_tensor(buffer).to(compute.device)
    with mode:
        if step(module, compute, torch.tensor([3, 1, 4, 0])) == {compute.device}:
            sys.stdout.write(f"a step stays on {compute.device}\n")
        try:
            module(torch.zeros(4, 3, 9, 14))
        except RuntimeError as error:
            if "same device" in str(error):
                sys.stdout.write("a tensor elsewhere is refused\n")


if __name__ == "__main__":
    main()
