import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F

from assay.errors import DataError
from assay.models.build import build_model
from assay.models.cnn import Cnn, ResidualBlock
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import CnnParams, MlpParams
from assay.training.health import examine

SPEC = ModelSpec(
    model=CnnParams(channels=(4, 8), hidden_units=16),
    shape=(9, 14, 3),
    class_names=("a", "b", "c"),
    dropout=DropoutProbs(hidden=0.5),
    mean=(100.0, 120.0, 140.0),
    std=(50.0, 60.0, 0.0),
)
IMAGES = torch.randint(0, 256, (6, 3, 9, 14), generator=torch.Generator().manual_seed(0)).float()


def textbook(module, images: torch.Tensor) -> torch.Tensor:
    """max_pool(relu(conv)), contiguous, without dropout."""
    mean = torch.tensor([100.0, 120.0, 140.0]).view(1, 3, 1, 1)
    std = torch.tensor([50.0, 60.0, 1.0]).view(1, 3, 1, 1)
    features = ((images - mean) / std).contiguous()
    for conv in module.convs:
        features = F.max_pool2d(F.relu(F.conv2d(features, conv.weight.contiguous(), conv.bias, padding=1)), 2)
    return module.output(F.relu(module.hidden(features.permute(0, 2, 3, 1).reshape(len(features), -1))))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_images_are_normalised_to_the_last_bit(memory_format) -> None:
    images = IMAGES.to(memory_format=memory_format)
    ours = build_model(SPEC, 0).normalize(images)
    mean, std = torch.tensor([100.0, 120.0, 140.0]).view(1, 3, 1, 1), torch.tensor([50.0, 60.0, 1.0]).view(1, 3, 1, 1)
    assert torch.equal(ours, (images - mean) / std)
    assert ours.stride() == images.stride()


def test_logits_and_gradients_equal_the_textbook_form() -> None:
    ours, theirs = build_model(SPEC, 0), build_model(SPEC, 0)
    ours.dropout.p = theirs.dropout.p = 0.0
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    F.cross_entropy(ours(IMAGES.to(memory_format=torch.channels_last)), labels).backward()
    F.cross_entropy(textbook(theirs, IMAGES), labels).backward()
    torch.testing.assert_close(ours(IMAGES), textbook(theirs, IMAGES), rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_bf16_gradients_point_where_fp32_ones_do() -> None:
    gradients = []
    for enabled in (True, False):
        module = build_model(SPEC, 0).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = module(IMAGES)
        F.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.995


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (8, 8, 1), (4, 4, 2), (5, 40, 3)])
def test_any_image_shape(shape: tuple[int, int, int]) -> None:
    spec = dataclasses.replace(SPEC, shape=shape, mean=(0.0,) * shape[2], std=(1.0,) * shape[2])
    height, width, channels = shape
    assert build_model(spec, 0)(torch.zeros(2, channels, height, width)).shape == (2, 3)


def test_the_classic_sizes() -> None:
    spec = dataclasses.replace(SPEC, model=CnnParams(), shape=(28, 28, 1), mean=(0.0,), std=(1.0,))
    sizes = {name: tuple(p.shape) for name, p in build_model(spec, 0).named_parameters()}
    assert sizes["convs.0.weight"] == (32, 1, 3, 3) and sizes["convs.1.weight"] == (64, 32, 3, 3)
    assert sizes["hidden.weight"] == (128, 64 * 7 * 7) and sizes["output.weight"] == (3, 128)


def test_too_small_an_image_is_refused() -> None:
    spec = dataclasses.replace(SPEC, shape=(3, 28, 3))
    with pytest.raises(DataError, match=r"3x28 pixels are too small for 2 poolings.*at most 1 entries"):
        build_model(spec, 0)


def test_dropout_zeroes_hidden_activations_and_scales_the_rest() -> None:
    module, seen = build_model(SPEC, 0), {}
    module.dropout.register_forward_hook(lambda layer, args, out: seen.update(before=args[0], after=out))
    images = IMAGES.repeat(100, 1, 1, 1)
    torch.manual_seed(0)
    module(images)
    alive = seen["before"] > 0
    kept = seen["after"][alive] != 0
    torch.testing.assert_close(seen["after"][alive][kept], seen["before"][alive][kept] / (1 - 0.5))
    assert abs(kept.float().mean() - 0.5) < 5 * 0.5 / len(kept) ** 0.5
    module.eval()(images)
    assert torch.equal(seen["before"], seen["after"])


def test_initial_weights_are_the_seeds_and_torch_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (torch.cat([p.flatten() for p in build_model(SPEC, s).parameters()]) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    dropped = dataclasses.replace(SPEC, dropout=DropoutProbs())
    assert torch.equal(first, torch.cat([p.flatten() for p in build_model(dropped, 1).parameters()]))


def test_the_model_exports() -> None:
    module = build_model(SPEC, 0).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(program.module()(IMAGES[:3]), module(IMAGES[:3]))


def residual(**changes) -> ModelSpec:
    params = {"channels": (4, 8), "batch_norm": True, "residual_blocks": 2, "head": "average", **changes}
    return dataclasses.replace(SPEC, model=CnnParams(**params))


def test_blocks_of_one_pixel_take_a_batch_of_one() -> None:
    height, width, channels = SPEC.image_shape
    num_pools = min(height, width).bit_length() - 1
    module = build_model(residual(channels=(4,) * num_pools), 0)
    module.train()(torch.rand(1, channels, height, width)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_a_block_adds_to_what_comes_in() -> None:
    torch.manual_seed(0)
    block, features = ResidualBlock(4), torch.rand(2, 4, 5, 6)
    assert torch.equal(block(features), features)
    torch.nn.init.ones_(block.norm2.weight)
    inner = F.conv2d(features, block.conv1.weight, padding=1)
    inner = F.conv2d(F.relu(F.batch_norm(inner, None, None, training=True)), block.conv2.weight, padding=1)
    expected = F.relu(features + F.batch_norm(inner, None, None, training=True))
    torch.testing.assert_close(block(features), expected)


def test_blocks_stand_after_each_pool() -> None:
    module, seen = build_model(residual(), 0), []
    for block in [block for group in module.blocks for block in group]:
        block.register_forward_hook(lambda layer, args, out: seen.append(tuple(out.shape)))
    module(IMAGES)
    assert seen == [(6, 4, 4, 7)] * 2 + [(6, 8, 2, 3)] * 2


def test_the_average_head_averages_each_map() -> None:
    module, seen = build_model(residual(), 0), {}
    module.dropout.register_forward_hook(lambda layer, args, out: seen.update(pooled=args[0]))
    module.blocks[1].register_forward_hook(lambda layer, args, out: seen.update(maps=out))
    module(IMAGES)
    torch.testing.assert_close(seen["pooled"], seen["maps"].mean((2, 3)))
    assert module.output.weight.shape == (3, 8)
    names = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert names == {"convs", "norms", "blocks", "output"}


def test_without_blocks_the_parameters_are_those_of_old_in_their_order() -> None:
    names = [name for name, _ in build_model(SPEC, 0).named_parameters()]
    layers = ("convs.0", "convs.1", "hidden", "output")
    assert names == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def test_input_dropout_drops_pixels() -> None:
    module = build_model(dataclasses.replace(SPEC, dropout=DropoutProbs(input=0.5)), 0)
    seen = {}
    module.input_dropout.register_forward_hook(lambda layer, args, out: seen.update(before=args[0], after=out))
    torch.manual_seed(0)
    module(IMAGES)
    kept = seen["after"] != 0
    assert abs(kept.float().mean() - 0.5) < 5 * 0.5 / kept.numel() ** 0.5
    torch.testing.assert_close(seen["after"][kept], seen["before"][kept] * 2)


def test_other_params_are_refused() -> None:
    with pytest.raises(TypeError, match="made of CnnParams, not of MlpParams"):
        Cnn(dataclasses.replace(SPEC, model=MlpParams()))


def test_spec_round_trip() -> None:
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(ValueError, match="keys are"):
        ModelSpec.from_json({"model": {}})


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_prepared_for_training_it_answers_the_same_but_for_rounding(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.models.pooled_conv._multiplies_tiles", lambda: False)
    spec = dataclasses.replace(SPEC, model=CnnParams(channels=(16, 32)))
    module = build_model(spec, 0).to(kind)
    images = IMAGES.to(kind)
    plain = module.eval()(images)
    assert module.prepare_training(1 << 60, 1, kind)
    prepared = module(images)
    assert not torch.equal(prepared, plain)
    torch.testing.assert_close(prepared, plain, rtol=1e-5, atol=1e-5 if kind == torch.float32 else 0.05)


def test_prepared_for_training_its_layers_can_be_looked_at() -> None:
    module = build_model(dataclasses.replace(SPEC, model=CnnParams(channels=(16, 32))), 0).eval()
    gradients = {name: torch.zeros(()) for name, _ in module.named_modules()}
    plain = examine(module, gradients, lambda: module(IMAGES))
    assert module.prepare_training(1 << 60, 1, torch.float32)
    prepared = examine(module, gradients, lambda: module(IMAGES))
    assert plain == prepared
    assert all(layer.activation_std is not None for layer in prepared)
