"""Long short-term memory, one or two directions, for text and series."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.models.dropout import Dropout, dropout
from assay.models.normalize import NormalizeFeatures
from assay.models.spec import ModelSpec
from assay.models.steps import AttentionPooling, MeanPooling, backward_order, present_steps
from assay.params import LstmParams
from assay.records import TEXT


class Lstm(nn.Module):
    """Layers of LSTMs over a sequence, its states made one vector, an output layer.

    With ``x_t`` the token's vector or the normalised values of step ``t``, ``s(z) = 1 / (1 + exp(-z))`` and ``.`` the
    product component by component, each direction of each layer computes::

        i, f, o = s(W_i x_t + R_i h_{t-1} + b_i), ...    input, forget and output gate
        g       = tanh(W_g x_t + R_g h_{t-1} + b_g)
        c_t     = f . c_{t-1} + i . g
        h_t     = o . tanh(c_t)

    from ``h = c = 0``. The second direction reads each sequence from its own last step to its first. The next layer
    sees both states of a step side by side. ``pooling`` makes one vector ``p`` of the last layer's states: ``last`` is
    each direction's state after the last step that it read; ``mean`` and ``attention`` weight the steps
    (`assay.models.steps`). Then ``logits = U dropout(p) + d``. Padding has no part in any of it: the logits do not
    depend on how much of it there is.

    Dropout zeroes each value with probability p while training and scales the others by 1 / (1 - p): input dropout on
    the components of ``x_t``, hidden dropout on the states between layers and on ``p``. Recurrent dropout does so to
    the weights ``R``, once for each batch, so that all steps of a batch compute with the same weights.

    Attributes:
        tokens: Each token's vector; text only.
        normalize: Each channel to zero mean and unit variance, missing values to 0; series only.
        layers: One LSTM or two each.
        pooling: The states to one vector; nothing where the last ones are taken.
        input_dropout: Dropout of the components of an input.
        dropout: Dropout of states.
        output: The output layer.

    Source:
        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, with forget gates that
        start open (Gers, Schmidhuber, Cummins, Neural Computation 12(10), 2000; Jozefowicz, Zaremba, Sutskever, ICML
        2015, section 2.2). Two directions: Schuster and Paliwal, IEEE Trans. Signal Processing 45(11), 1997.
        Recurrent dropout: Merity, Keskar, Socher, "Regularizing and optimizing LSTM language models", ICLR 2018,
        section 2.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        params = spec.model
        if not isinstance(params, LstmParams):
            raise TypeError(f"an Lstm is made of LstmParams, not of {type(params).__name__}")
        self.kind = spec.kind
        if spec.kind == TEXT:
            self.tokens = nn.Embedding(spec.num_tokens, params.embedding_dim, padding_idx=0)
        else:
            self.normalize = NormalizeFeatures(spec.mean, spec.std)
        width = params.embedding_dim if spec.kind == TEXT else spec.shape[-1]
        dim = params.hidden_units * (2 if params.bidirectional else 1)
        self.layers = nn.ModuleList(
            Layer(dim if layer else width, params, spec.dropout.recurrent) for layer in range(params.num_layers)
        )
        self.hidden_units = params.hidden_units
        self.pooling = {"last": nn.Identity, "mean": MeanPooling}.get(params.pooling, lambda: AttentionPooling(dim))()
        self.takes_last = params.pooling == "last"
        self.input_dropout = Dropout(spec.dropout.input)
        self.dropout = Dropout(spec.dropout.hidden)
        self.output = nn.Linear(dim, spec.num_classes)

    def forward(
        self, inputs: Int[Tensor, "batch step"] | Float[Tensor, "batch step channel"]
    ) -> Float[Tensor, "batch class"]:
        """Return the logits of a batch.

        Args:
            inputs: Token numbers, 0 where there is padding, or raw values, NaN where there is padding or one is
                missing.

        Returns:
            One logit for each class.
        """
        present = present_steps(inputs)
        order = backward_order(present)
        values = self.tokens(inputs) if self.kind == TEXT else self.normalize(inputs)
        states = self.input_dropout(values.transpose(0, 1))
        for index, layer in enumerate(self.layers):
            states = layer(states if index == 0 else self.dropout(states), order)
        pooled = self._last(states, present) if self.takes_last else self.pooling(states.transpose(0, 1), present)
        logits: Tensor = self.output(self.dropout(pooled))
        return logits

    def _last(self, states: Tensor, present: Tensor) -> Tensor:
        """Take the forward state after each sequence's last step, and the backward one after its first."""
        batch = present.shape[0]  # len() would fix it when the model is exported
        rows = (present.sum(1) - 1).clamp(min=0) * batch + torch.arange(batch, device=present.device)
        forward = states[..., : self.hidden_units].flatten(0, 1).index_select(0, rows)
        return torch.cat((forward, states[0, :, self.hidden_units :]), 1)


class Layer(nn.Module):
    """One LSTM, or two that read a sequence from both ends.

    Args:
        width: Width of an input.
        params: Sizes.
        drop_prob: Probability of dropping a weight between one state and the next while training.

    Attributes:
        forwards: The LSTM that reads from the first step on.
        backwards: The LSTM that reads from the last step back; None without.
    """

    def __init__(self, width: int, params: LstmParams, drop_prob: float) -> None:
        super().__init__()
        self.forwards = Direction(width, params.hidden_units, drop_prob)
        self.backwards = Direction(width, params.hidden_units, drop_prob) if params.bidirectional else None

    def forward(
        self, inputs: Float[Tensor, "step batch width"], order: Int[Tensor, " row"]
    ) -> Float[Tensor, "step batch state"]:
        """Return the states of each step, forward and backward ones side by side.

        Args:
            inputs: A vector for each step.
            order: What `backward_order` says.
        """
        states: Tensor = self.forwards(inputs)
        if self.backwards is None:
            return states
        turned = self.backwards(_reorder(inputs, order))
        return torch.cat((states, _reorder(turned, order)), 2)


class Direction(nn.Module):
    """One LSTM over time, from the first row to the last.

    torch's own kernel runs it: oneDNN's in 16 and 32 bits on a CPU, cuDNN's on a GPU.

    Args:
        width: Width of an input.
        hidden_units: Width of the state.
        drop_prob: Probability of dropping a weight between one state and the next while training.

    Attributes:
        input_weight: ``W``, those of the input gate, the forget gate, ``g`` and the output gate below each other.
        recurrent_weight: ``R``, likewise.
        bias: ``b``, likewise.
    """

    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor

    def __init__(self, width: int, hidden_units: int, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.hidden_units = hidden_units
        bound = 1 / math.sqrt(hidden_units)
        shapes = {"input_weight": (width,), "recurrent_weight": (hidden_units,), "bias": ()}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(4 * hidden_units, *shape).uniform_(-bound, bound)))
        with torch.no_grad():
            self.bias[hidden_units : 2 * hidden_units] += 1

    def forward(self, inputs: Float[Tensor, "step batch width"]) -> Float[Tensor, "step batch unit"]:
        """Return the state after each step."""
        recurrent = dropout(self.recurrent_weight, self.drop_prob, self.training)
        weights = [self.input_weight, recurrent, self.bias, torch.zeros_like(self.bias)]
        start = inputs.new_zeros(1, inputs.shape[1], self.hidden_units)
        states: Tensor = torch.lstm(inputs, (start, start), weights, True, 1, 0.0, self.training, False, False)[0]
        return states


def _reorder(states: Tensor, order: Tensor) -> Tensor:
    return states.flatten(0, 1).index_select(0, order).view_as(states)
