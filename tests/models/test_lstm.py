import pytest
import torch
from torch import nn

from assay.models.build import build_model
from assay.models.lstm import Direction, Lstm
from assay.models.spec import DropoutProbs
from assay.models.steps import present_steps
from assay.params import LstmParams
from assay.records import SERIES, TEXT
from tests.models.tiny import LENGTHS, inputs_of, spec_of, with_padding


def lstm(kind: str = TEXT, dropout: DropoutProbs | None = None, **changes) -> Lstm:
    params = LstmParams(**{"embedding_dim": 6, "hidden_units": 5, **changes})
    module = build_model(spec_of(params, kind, dropout), 0)
    assert isinstance(module, Lstm)
    return module


def torchs(module: Lstm, width: int, num_layers: int, bidirectional: bool) -> nn.LSTM:
    """nn.LSTM with the same weights."""
    theirs = nn.LSTM(width, 5, num_layers, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for index, layer in enumerate(module.layers):
            for suffix, ours in (("", layer.forwards), ("_reverse", layer.backwards)):
                if ours is not None:
                    getattr(theirs, f"weight_ih_l{index}{suffix}").copy_(ours.input_weight)
                    getattr(theirs, f"weight_hh_l{index}{suffix}").copy_(ours.recurrent_weight)
                    getattr(theirs, f"bias_ih_l{index}{suffix}").copy_(ours.bias)
                    getattr(theirs, f"bias_hh_l{index}{suffix}").zero_()
    return theirs


@pytest.mark.parametrize("kind", [TEXT, SERIES])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_equals_torchs_packed_lstm(kind: str, num_layers: int, bidirectional: bool, pooling) -> None:
    module = lstm(kind, num_layers=num_layers, bidirectional=bidirectional, pooling=pooling)
    inputs = inputs_of(kind)
    vectors = (module.tokens(inputs) if kind == TEXT else module.normalize(inputs)).detach()
    theirs = torchs(module, vectors.shape[2], num_layers, bidirectional)
    packed = nn.utils.rnn.pack_padded_sequence(vectors, torch.tensor(LENGTHS), batch_first=True)
    states, (final, _) = theirs(packed)
    if pooling == "last":
        pooled = final[-2:].transpose(0, 1).flatten(1) if bidirectional else final[-1]
    else:
        unpacked, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        pooled = unpacked.sum(1) / torch.tensor(LENGTHS).unsqueeze(1)
    expected = module.output(pooled)
    logits = module(inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    module.zero_grad()
    logits.square().sum().backward()
    expected.square().sum().backward()
    first = module.layers[0]
    torch.testing.assert_close(first.forwards.recurrent_weight.grad, theirs.weight_hh_l0.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.forwards.input_weight.grad, theirs.weight_ih_l0.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.forwards.bias.grad, theirs.bias_hh_l0.grad, rtol=1e-4, atol=1e-6)
    if bidirectional:
        grads = first.backwards.recurrent_weight.grad, theirs.weight_hh_l0_reverse.grad
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [TEXT, SERIES])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_more_padding_changes_nothing(kind: str, pooling) -> None:
    module, inputs = lstm(kind, pooling=pooling), inputs_of(kind)
    expected = module(inputs)
    torch.testing.assert_close(module(with_padding(inputs, 9)), expected)
    torch.testing.assert_close(module(with_padding(inputs[1:], -2)), expected[1:])
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(module(inputs[row : row + 1, :length])[0], expected[row])


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_every_step_counts(pooling) -> None:
    module, inputs = lstm(SERIES, pooling=pooling), inputs_of(SERIES)
    inputs.requires_grad_()
    module(inputs).square().sum().backward()
    assert torch.equal(inputs.grad.ne(0).any(2), present_steps(inputs))


def test_attention_weighs_by_the_score() -> None:
    module, inputs = lstm(SERIES, pooling="attention", num_layers=1), inputs_of(SERIES)
    seen = {}
    module.pooling.register_forward_hook(lambda layer, args, out: seen.update(states=args[0], pooled=out))
    module(inputs)
    states = seen["states"][1, : LENGTHS[1]]
    weights = torch.softmax(states @ module.pooling.score.weight[0], 0)
    torch.testing.assert_close(seen["pooled"][1], weights @ states)


def test_recurrent_dropout_drops_weights_once_for_all_steps() -> None:
    torch.manual_seed(0)
    direction = Direction(3, 5, 0.5)
    inputs = torch.randn(4, 2, 3)
    torch.manual_seed(1)
    states = direction(inputs)
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(direction.recurrent_weight, 0.5)
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    theirs = nn.LSTM(3, 5)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(direction.input_weight)
        theirs.weight_hh_l0.copy_(dropped)
        theirs.bias_ih_l0.copy_(direction.bias)
        theirs.bias_hh_l0.zero_()
    torch.testing.assert_close(states, theirs(inputs)[0])
    states[-1].sum().backward()
    assert torch.equal(direction.recurrent_weight.grad == 0, dropped == 0)


def test_hidden_dropout_acts_between_layers_and_before_the_output() -> None:
    module, calls = lstm(dropout=DropoutProbs(hidden=0.5), num_layers=3), []
    module.dropout.register_forward_hook(lambda layer, args, out: calls.append(tuple(out.shape)))
    module(inputs_of(TEXT))
    assert calls == [(7, 4, 10), (7, 4, 10), (4, 10)]


def test_forget_gates_start_open() -> None:
    bias = lstm().layers[0].forwards.bias
    assert (bias[5:10] > 0.5).all() and (bias[:5] < 0.5).all() and (bias[10:] < 0.5).all()


def test_other_params_are_refused() -> None:
    from assay.params import MlpParams

    with pytest.raises(TypeError, match="made of LstmParams, not of MlpParams"):
        Lstm(spec_of(MlpParams(), SERIES))
