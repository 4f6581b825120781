import dataclasses

import pytest
import torch
import torch.nn.functional as F

from assay.errors import ParamsError
from assay.models.build import build_model
from assay.models.fitting import takes_any_length
from assay.models.mlp import Mlp
from assay.models.spec import DropoutProbs
from assay.params import LstmParams, MlpParams
from assay.records import IMAGE, SERIES, TABLE
from tests.models.tiny import inputs_of, spec_of, with_padding


def test_logits_equal_the_textbook_form() -> None:
    module, inputs = build_model(spec_of(MlpParams(hidden_units=(16, 8)), TABLE), 0), inputs_of(TABLE)
    hidden = ((inputs - torch.arange(4.0)) / (2 + torch.arange(4.0))).nan_to_num(0.0)
    for layer in module.layers:
        hidden = F.relu(F.linear(hidden, layer.weight, layer.bias))
    torch.testing.assert_close(module(inputs), module.output(hidden))


def test_without_hidden_layers_it_is_logistic_regression() -> None:
    module, inputs = build_model(spec_of(MlpParams(hidden_units=()), TABLE), 0), inputs_of(TABLE)
    assert [name for name, _ in module.named_parameters()] == ["output.weight", "output.bias"]
    torch.testing.assert_close(module(inputs), module.output(module.normalize(inputs)))


def test_batch_norm_normalises_before_the_nonlinearity() -> None:
    module, seen = build_model(spec_of(MlpParams(hidden_units=(16,), batch_norm=True), TABLE), 0), {}
    module.norms[0].register_forward_hook(lambda layer, args, out: seen.update(normed=out))
    module.dropout.register_forward_hook(lambda layer, args, out: seen.update(after=args[0]))
    module(inputs_of(TABLE))
    torch.testing.assert_close(seen["normed"].mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    assert torch.equal(seen["after"], seen["normed"].relu())


def test_a_shorter_series_counts_as_padded() -> None:
    module, inputs = build_model(spec_of(MlpParams(), SERIES), 0), inputs_of(SERIES)[1:]
    torch.testing.assert_close(module(inputs[:, :5]), module(inputs))


def test_statistics_of_a_series_are_standardized_and_padding_has_no_part_in_them() -> None:
    module, inputs = build_model(spec_of(MlpParams(features="statistics"), SERIES), 0), inputs_of(SERIES)
    seen: dict[str, torch.Tensor] = {}
    module.input_dropout.register_forward_hook(lambda layer, args, out: seen.update(features=args[0]))
    expected = module.statistics(module.normalize(inputs), ~inputs.isnan())
    module(inputs)
    variance, mean = torch.var_mean(expected, 0, correction=0)
    torch.testing.assert_close(seen["features"], (expected - mean) / (variance + 1e-5).sqrt())
    for extra in (-2, 5):
        some = inputs[1:]
        torch.testing.assert_close(module.eval()(with_padding(some, extra)), module(some))


@pytest.mark.parametrize("kind", [TABLE, IMAGE])
def test_statistics_of_what_has_no_steps_are_refused(kind: str) -> None:
    with pytest.raises(ParamsError, match=f"statistics: are over the steps of series, and the data is of kind {kind}"):
        build_model(spec_of(MlpParams(features="statistics"), kind), 0)


def test_only_with_statistics_it_takes_series_of_any_length() -> None:
    assert takes_any_length(spec_of(MlpParams(features="statistics"), SERIES))
    assert not takes_any_length(spec_of(MlpParams(), SERIES))


def test_an_image_lies_row_by_row_channels_together() -> None:
    module, inputs = build_model(spec_of(MlpParams(hidden_units=()), IMAGE), 0), inputs_of(IMAGE)
    expected = module.output(module.normalize(inputs).permute(0, 2, 3, 1).reshape(4, -1))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.testing.assert_close(module(inputs.to(memory_format=memory_format)), expected)


def test_dropout_acts_after_each_hidden_layer_and_on_the_features() -> None:
    params = MlpParams(hidden_units=(400, 300))
    module, seen = build_model(spec_of(params, TABLE, DropoutProbs(hidden=0.5, input=0.25)), 0), []
    for layer in (module.input_dropout, module.dropout):
        layer.register_forward_hook(lambda layer, args, out: seen.append((layer.p, args[0], out)))
    torch.manual_seed(0)
    module(inputs_of(TABLE).nan_to_num(0.5).repeat(100, 1))
    assert [(prob, before.shape[1]) for prob, before, _ in seen] == [(0.25, 4), (0.5, 400), (0.5, 300)]
    for prob, before, after in seen:
        kept = after[before != 0] != 0
        assert abs(kept.float().mean() - (1 - prob)) < 5 * 0.5 / len(kept) ** 0.5
        torch.testing.assert_close(after[after != 0], before[after != 0] / (1 - prob))


def test_other_params_are_refused() -> None:
    with pytest.raises(TypeError, match="made of MlpParams, not of LstmParams"):
        Mlp(dataclasses.replace(spec_of(MlpParams(), SERIES), model=LstmParams()))
