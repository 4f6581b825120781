import pytest
import torch
import torch.nn.functional as F

from assay.models.dropout import _CHUNK, Dropout, dropout


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prob", [0.1, 0.25, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("shape", [(64, 128), (7, 3), (3, _CHUNK + 5), (1,), (0, 4)])
def test_mask_result_and_random_state_are_torchs(shape, prob, kind):
    values = torch.randn(shape).to(kind)
    torch.manual_seed(3)
    expected, then = F.dropout(values, prob), torch.rand(3)

    torch.manual_seed(3)
    result, now = dropout(values, prob, True), torch.rand(3)

    assert torch.equal(result, expected)
    assert torch.equal(now, then)


def test_values_in_any_memory_layout_get_the_mask_that_torch_gives_them():
    values = torch.randn(6, 5, 4, 3).permute(0, 2, 1, 3)
    for given in (values, values[:, ::2], values.expand(2, *values.shape)[1], values[0].contiguous()):
        torch.manual_seed(3)
        expected = F.dropout(given, 0.5)
        torch.manual_seed(3)
        result = dropout(given, 0.5, True)
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()


def test_gradients_pass_where_values_do_and_are_scaled_likewise():
    values = torch.randn(40, 10, requires_grad=True)
    torch.manual_seed(3)
    result = dropout(values, 0.25, True)
    result.sum().backward()

    assert torch.equal(values.grad != 0, result != 0)
    assert torch.equal(values.grad[result != 0], torch.full_like(values.grad[result != 0], 1 / 0.75))


@pytest.mark.parametrize(("prob", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_none_and_all_are_dropped_without_random_numbers(prob, expected):
    before = torch.get_rng_state()
    assert torch.equal(dropout(torch.ones(9), prob, True), torch.full((9,), expected))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_dropped_out_of_training():
    layer, values = Dropout(0.5).eval(), torch.ones(100)
    assert layer(values) is values
    assert (layer.train()(values) == 0).any()


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout(torch.ones(2), 1.5, True)
