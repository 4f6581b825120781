import torch

from assay.models.normalize import NormalizeFeatures

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
