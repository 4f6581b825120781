import pytest
import torch

from assay.models.normalize import BatchNorm, BatchNormMaps, NormalizeFeatures

NAN = float("nan")


def test_features_are_normalised_and_missing_ones_become_the_mean() -> None:
    normalize = NormalizeFeatures((1.0, 2.0, 3.0), (2.0, 0.0, 4.0))
    values = torch.tensor([[3.0, NAN, 3.0], [NAN, 5.0, 11.0]])
    assert normalize(values).tolist() == [[1.0, 0.0, 0.0], [0.0, 3.0, 2.0]]
    assert torch.equal(normalize(values.view(2, 1, 3)), normalize(values).view(2, 1, 3))


def test_missing_features_get_no_gradient() -> None:
    values = torch.tensor([[3.0, NAN]], requires_grad=True)
    NormalizeFeatures((1.0, 2.0), (2.0, 4.0))(values).sum().backward()
    assert values.grad.tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(("norm", "torchs"), [(BatchNorm, torch.nn.BatchNorm1d), (BatchNormMaps, torch.nn.BatchNorm2d)])
def test_batch_norm_of_one_value_is_by_running_statistics_and_leaves_them(norm, torchs) -> None:
    norm, torchs = norm(3), torchs(3)
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 2.0, 0.0]])
    if isinstance(norm, BatchNormMaps):
        values = values.view(2, 3, 1, 1)
    torch.testing.assert_close(norm(values), torchs(values))
    before = {name: buffer.clone() for name, buffer in norm.state_dict().items()}
    torch.testing.assert_close(norm(values[:1]), torchs.eval()(values[:1]))
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value"):
        torchs.train()(values[:1])


def test_one_image_of_several_pixels_has_a_variance() -> None:
    images = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BatchNormMaps(3)(images), torch.nn.BatchNorm2d(3)(images))
