import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.models.build import build_model
from assay.models.spec import DropoutProbs
from assay.models.transformer import EncoderLayer, Transformer, patches, sinusoids
from assay.params import MlpParams, TransformerParams
from assay.records import IMAGE, SERIES, TEXT
from tests.models.tiny import LENGTHS, inputs_of, spec_of, with_padding


def transformer(kind: str = TEXT, dropout: DropoutProbs | None = None, **changes) -> Transformer:
    params = TransformerParams(**{"dim": 8, "num_heads": 2, "feedforward_dim": 12, **changes})
    module = build_model(spec_of(params, kind, dropout), 0)
    assert isinstance(module, Transformer)
    return module


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_layer_equals_torchs(norm, activation) -> None:
    torch.manual_seed(0)
    params = TransformerParams(dim=8, num_heads=2, feedforward_dim=12, norm=norm, activation=activation)
    ours = EncoderLayer(params, 0.0, 0.0)
    eps = ours.attention_norm.eps
    theirs = nn.TransformerEncoderLayer(8, 2, 12, 0.0, activation, eps, True, norm_first=norm == "pre")
    attention = ours.attention
    for mine, its in ((ours.attention_norm, theirs.norm1), (ours.feedforward_norm, theirs.norm2)):
        nn.init.normal_(mine.weight)
        nn.init.normal_(mine.bias)
        its.load_state_dict(mine.state_dict())
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    theirs.linear1.load_state_dict(ours.widen.state_dict())
    theirs.linear2.load_state_dict(ours.narrow.state_dict())
    states = torch.randn(4, 7, 8)
    absent = torch.arange(7) >= torch.tensor(LENGTHS).unsqueeze(1)
    bias = absent.float().mul(-1e9)[:, None, None, :]
    result, expected = ours(states, bias), theirs(states, src_key_padding_mask=absent)
    torch.testing.assert_close(result[~absent], expected[~absent], rtol=1e-5, atol=1e-5)
    result[~absent].square().sum().backward()
    expected[~absent].square().sum().backward()
    torch.testing.assert_close(ours.narrow.weight.grad, theirs.linear2.weight.grad, rtol=1e-4, atol=1e-4)
    query = theirs.self_attn.in_proj_weight.grad[:8]
    torch.testing.assert_close(attention.query.weight.grad, query, rtol=1e-4, atol=1e-4)


def test_both_forms_of_attention_give_the_same() -> None:
    attention = transformer().layers[0].attention
    states = torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(4, 1, 1, 7)
    bias[1:, ..., 5:] = -1e9
    query, key, value = (attention._heads(f(states)) for f in (attention.query, attention.key, attention.value))
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(attention(states, bias), attention.output(fused.transpose(1, 2).flatten(2)))


def test_bert_fits_exactly() -> None:
    module = transformer(norm="post", pooling="first")
    names = {name for name, _ in module.named_parameters()}
    assert {"tokens.weight", "positions.weight", "first", "norm.weight", "layers.0.attention.query.bias"} <= names
    assert {m.eps for m in module.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
    assert module.positions.weight.shape == (8, 8)
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0, 0]])
    vectors = torch.cat((module.first[None], module.tokens.weight[tokens[0]])) + module.positions.weight
    bias = torch.tensor([0.0] * 4 + [-1e9] * 4).view(1, 1, 1, 8)
    states = F.layer_norm(vectors, (8,), module.norm.weight, module.norm.bias, 1e-12)[None]
    for layer in module.layers:
        states = layer(states, bias)
    torch.testing.assert_close(module.encode(tokens), states)
    torch.testing.assert_close(module(tokens), module.output(states[:, 0]))


@pytest.mark.parametrize("kind", [TEXT, SERIES])
@pytest.mark.parametrize("pooling", ["mean", "first", "attention"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(kind: str, pooling, norm) -> None:
    module, inputs = transformer(kind, pooling=pooling, norm=norm), inputs_of(kind)
    expected = module(inputs)
    torch.testing.assert_close(module(with_padding(inputs[1:], -2)), expected[1:])
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(module(inputs[row : row + 1, :length])[0], expected[row])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_places_matter(positions) -> None:
    module, inputs = transformer(positions=positions), inputs_of(TEXT)[:1]
    if positions == "learned":
        nn.init.normal_(module.positions.weight)
    assert not torch.allclose(module(inputs), module(inputs.flip(1)))
    assert ("positions.weight" in dict(module.named_parameters())) == (positions == "learned")


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 7)
    assert table.shape == (50, 7)
    for place, component in ((0, 0), (0, 1), (3, 2), (49, 5), (49, 6)):
        angle = place / 10000 ** (component // 2 * 2 / 7)
        expected = math.sin(angle) if component % 2 == 0 else math.cos(angle)
        assert table[place, component].item() == pytest.approx(expected, abs=1e-4)


def test_patches_are_the_squares_filled_up_with_zeros() -> None:
    images = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    cut = patches(images, 4)
    assert cut.shape == (2, 4, 4 * 4 * 3)
    whole = F.pad(images, (0, 1, 0, 3))
    for number, (top, left) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        square = whole[1, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
        assert torch.equal(cut[1, number], square)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("kind", [TEXT, IMAGE])
def test_attention_weights_are_those_that_are_used(norm, kind: str) -> None:
    module, inputs, seen = transformer(kind, norm=norm), inputs_of(kind), []
    weights = module.attention_weights(inputs)
    assert weights.shape == (2, 4, 2, 7, 7) if kind == TEXT else (2, 4, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if kind == TEXT:
        assert not weights[:, 1, :, :, LENGTHS[1] :].any() and (weights[:, 1, :, :, : LENGTHS[1]] > 0).all()
    for layer in module.layers:
        layer.attention.register_forward_hook(lambda layer, args, out: seen.append((layer, args[0], out)))
    module(inputs)
    for (attention, states, out), used in zip(seen, weights, strict=True):
        gathered = used @ attention._heads(attention.value(states))
        torch.testing.assert_close(out, attention.output(gathered.transpose(1, 2).flatten(2)))


def test_hidden_dropout_acts_at_the_start_after_sublayers_and_before_the_output() -> None:
    module, calls = transformer(dropout=DropoutProbs(hidden=0.5)), []
    for layer in module.modules():
        if isinstance(layer, nn.Dropout) and layer.p > 0:
            layer.register_forward_hook(lambda layer, args, out: calls.append(tuple(out.shape)))
    module(inputs_of(TEXT))
    assert calls == [(4, 7, 8)] * 5 + [(4, 8)]


def test_other_params_are_refused() -> None:
    with pytest.raises(TypeError, match="made of TransformerParams, not of MlpParams"):
        Transformer(spec_of(MlpParams(), SERIES))
