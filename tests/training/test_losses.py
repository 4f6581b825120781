import numpy as np
import pytest
import torch
from torch import nn

from assay.params import AdamWParams, TrainParams
from assay.training.losses import add_penalty, balanced_class_weights, training_loss
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])
LABELS = torch.tensor([0, 2])


def by_hand(smoothing: float) -> float:
    z = LOGITS.numpy().astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    target = np.full((2, 3), smoothing / 3)
    target[[0, 1], LABELS.numpy()] += 1 - smoothing
    return float(-(target * log_p).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_equals_the_formula(smoothing: float) -> None:
    loss = training_loss(LOGITS, LABELS, TrainParams(label_smoothing=smoothing))
    assert float(loss) == pytest.approx(by_hand(smoothing), rel=1e-6)


def test_l1_and_l2_equal_the_formula() -> None:
    master = MasterWeights(network(), torch.float32)
    weights = master.weights.detach().double()
    penalty = add_penalty(master.weights, torch.zeros(len(weights)), TrainParams(l1=0.03, l2=0.5))
    expected = 0.03 * float(weights.abs().sum()) + 0.5 / 2 * float((weights**2).sum())
    assert penalty.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("l1", "l2"), [(0.03, 0.5), (0.03, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_l1_and_l2_gradients_are_those_of_their_value(l1: float, l2: float) -> None:
    weights = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[7] = 0.0
    tracked = weights.clone().requires_grad_()
    (l1 * tracked.abs().sum() + l2 / 2 * tracked.square().sum()).backward()
    before = torch.arange(50, dtype=torch.float64)
    gradient = before.clone()
    add_penalty(weights, gradient, TrainParams(l1=l1, l2=l2))
    assert tracked.grad is not None
    torch.testing.assert_close(gradient - before, tracked.grad, rtol=0, atol=1e-12)


def test_weight_decay_shrinks_weights_only() -> None:
    module = network()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    master = MasterWeights(module, torch.float32)
    optimizer = build_optimizer(master.weights, master.rest, AdamWParams(learning_rate=0.1, weight_decay=0.5))
    master.collect()
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_balanced_weights_are_scikit_learns_and_give_every_class_the_same_say() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_class_weights(labels, 4)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy()) * 3 / 4
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[2] == 0
    totals = [float(weights[label] * (labels == label).sum()) for label in (0, 1, 3)]
    assert totals == pytest.approx([totals[0]] * 3)


def test_class_weights_weigh_the_terms_of_the_mean() -> None:
    weights = torch.tensor([0.5, 2.0, 3.0])
    plain = -torch.log_softmax(LOGITS, dim=1)[[0, 1], LABELS]
    expected = (plain * weights[LABELS]).sum() / weights[LABELS].sum()
    assert training_loss(LOGITS, LABELS, TrainParams(), weights).item() == pytest.approx(expected.item())


def test_the_loss_of_mixed_examples_is_the_mixture_of_both_losses() -> None:
    other = LABELS.flip(0)
    own, others = (training_loss(LOGITS, labels, TrainParams()).item() for labels in (LABELS, other))
    mixed = training_loss(LOGITS, LABELS, TrainParams(), mixed=(other, 0.3)).item()
    assert mixed == pytest.approx(0.3 * own + 0.7 * others)
