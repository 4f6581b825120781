import numpy as np
import pytest
import torch
from torch import nn

from assay.params import AdamWParams, TrainParams
from assay.training.losses import balanced_class_weights, training_loss
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer, weights_of


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
    loss = training_loss(LOGITS, LABELS, [], TrainParams(label_smoothing=smoothing))
    assert float(loss) == pytest.approx(by_hand(smoothing), rel=1e-6)


def test_l1_and_l2_equal_the_formula() -> None:
    module = network()
    conv, linear = module[0].weight.detach().double(), module[4].weight.detach().double()
    params = TrainParams(l1=0.03, l2=0.5)
    loss = training_loss(LOGITS, LABELS, weights_of(module), params)
    l1 = 0.03 * float(conv.abs().sum() + linear.abs().sum())
    l2 = 0.5 / 2 * float((conv**2).sum() + (linear**2).sum())
    assert loss.item() == pytest.approx(by_hand(0) + l1 + l2, rel=1e-6)


def test_l1_and_l2_gradients_and_what_they_leave_alone() -> None:
    module = network()
    training_loss(LOGITS, LABELS, weights_of(module), TrainParams(l1=0.03, l2=0.5)).backward()
    for name, parameter in module.named_parameters():
        if name in ("0.weight", "4.weight"):
            expected = 0.03 * parameter.detach().sign() + 0.5 * parameter.detach()
            torch.testing.assert_close(parameter.grad, expected)
        else:
            assert parameter.grad is None, name


def test_a_factor_of_zero_adds_nothing_to_the_graph() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = training_loss(logits, LABELS, weights_of(network()), TrainParams())
    assert "NllLoss" in type(loss.grad_fn).__name__


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
    assert training_loss(LOGITS, LABELS, [], TrainParams(), weights).item() == pytest.approx(expected.item())


def test_the_loss_of_mixed_examples_is_the_mixture_of_both_losses() -> None:
    other = LABELS.flip(0)
    own, others = (training_loss(LOGITS, labels, [], TrainParams()).item() for labels in (LABELS, other))
    mixed = training_loss(LOGITS, LABELS, [], TrainParams(), mixed=(other, 0.3)).item()
    assert mixed == pytest.approx(0.3 * own + 0.7 * others)
    penalised = training_loss(LOGITS, LABELS, [torch.ones(5)], TrainParams(l1=1.0), mixed=(other, 0.3)).item()
    assert penalised == pytest.approx(mixed + 5.0)
