import torch

from assay.models.steps import AttentionPooling, MeanPooling, backward_order, present_steps

NAN = float("nan")


def test_steps_are_present_up_to_the_last_real_one() -> None:
    tokens = torch.tensor([[3, 0, 2, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert present_steps(tokens).tolist() == [[True, True, True, False], [True] * 4, [False] * 4]
    series = torch.tensor([[[1.0, NAN], [NAN, NAN], [NAN, 0.0], [NAN, NAN]]])
    assert present_steps(series).tolist() == [[True, True, True, False]]


def test_sequences_turn_within_their_lengths_and_back() -> None:
    lengths = (4, 2, 1, 0)
    present = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    order = backward_order(present)
    rows = (torch.arange(4).unsqueeze(1) * 10 + torch.arange(4)).flatten()  # step, sequence
    turned = rows[order].view(4, 4).T.tolist()
    assert turned == [[30, 20, 10, 0], [11, 1, 21, 31], [2, 12, 22, 32], [3, 13, 23, 33]]
    assert torch.equal(rows[order][order], rows)


def test_pooling_leaves_padding_out() -> None:
    states = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    present = torch.arange(4) < torch.tensor([[4], [2], [0]])
    mean = MeanPooling()(states, present)
    torch.testing.assert_close(mean, torch.stack((states[0].mean(0), states[1, :2].mean(0), torch.zeros(6))))
    attention = AttentionPooling(6)
    pooled = attention(states, present)
    for row, length in ((0, 4), (1, 2)):
        weights = torch.softmax(states[row, :length] @ attention.score.weight[0], 0)
        torch.testing.assert_close(pooled[row], weights @ states[row, :length])
    assert not pooled[2].any()
