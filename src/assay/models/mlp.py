"""Fully connected layers for tables, and for series and images laid out flat."""

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.models.dropout import Dropout
from assay.models.normalize import BatchNorm, Normalize, NormalizeFeatures
from assay.models.spec import ModelSpec
from assay.models.statistics import SeriesStatistics, num_statistics
from assay.params import MlpParams
from assay.records import IMAGE, SERIES


class Mlp(nn.Module):
    """A multilayer perceptron.

    With ``x`` the normalised input laid out flat, or the statistics of a series, and ``relu(z) = max(z, 0)``::

        h_0 = input_dropout(x)
        h_i = dropout(relu(norm(W_i h_{i-1} + b_i)))    i = 1 .. n, one for each entry of `MlpParams.hidden_units`
        logits = U h_n + d

    ``norm`` is batch normalisation where `MlpParams.batch_norm` asks for it, else nothing. Without hidden layers this
    is multinomial logistic regression. Dropout zeroes each value with probability p while training and scales the
    others by 1 / (1 - p): hidden dropout on the hidden layers, input dropout on the features. A missing value of a
    table and the padding of a series count as the mean, which is 0 once normalised. An image is laid out row by row
    with the channels of a pixel together, a series step by step.

    Where `MlpParams.features` are ``statistics``, ``x`` is what `assay.models.statistics.SeriesStatistics` makes of a
    normalised series, each statistic to zero mean and unit variance by batch normalisation without gain and shift.
    Padding has no part in it then: the logits do not depend on how much of it there is.

    Attributes:
        normalize: Each column or channel to zero mean and unit variance.
        statistics: The statistics of a series; None where its values are the features.
        standardize: Batch normalisation of the statistics; None without.
        layers: The hidden layers.
        norms: Batch normalisation of each hidden layer; empty without.
        input_dropout: Dropout of features.
        dropout: Dropout after each hidden layer.
        output: The output layer.
        rectified: Names of the layers that ReLU follows, for `assay.training.health`.

    Source:
        Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 323, 1986, with
        ReLU (Glorot, Bordes, Bengio, AISTATS 2011) and dropout (Srivastava et al., JMLR 15, 2014, section 4).
        Batch normalisation: Ioffe and Szegedy, ICML 2015, algorithms 1 and 2.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        params = spec.model
        if not isinstance(params, MlpParams):
            raise TypeError(f"an Mlp is made of MlpParams, not of {type(params).__name__}")
        has_statistics = params.features == "statistics"
        self.num_features = num_statistics(spec.shape[-1]) if has_statistics else math.prod(spec.shape)
        self.kind = spec.kind
        self.normalize = (Normalize if spec.kind == IMAGE else NormalizeFeatures)(spec.mean, spec.std)
        self.statistics = SeriesStatistics(spec.shape[-1]) if has_statistics else None
        self.standardize = BatchNorm(self.num_features, affine=False) if has_statistics else None
        widths = (self.num_features, *params.hidden_units)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(width) for width in params.hidden_units if params.batch_norm)
        self.input_dropout = Dropout(spec.dropout.input)
        self.dropout = Dropout(spec.dropout.hidden)
        self.output = nn.Linear(widths[-1], spec.num_classes)
        before_relu = "norms" if self.norms else "layers"
        self.rectified = tuple(f"{before_relu}.{number}" for number in range(len(self.layers)))

    def forward(
        self,
        inputs: Float[Tensor, "batch column"]
        | Float[Tensor, "batch step channel"]
        | Float[Tensor, "batch channel height width"],
    ) -> Float[Tensor, "batch class"]:
        """Return the logits of a batch.

        Args:
            inputs: Rows, series or images of raw values, as `ModelSpec` says; a series may be shorter than the
                longest.

        Returns:
            One logit for each class.
        """
        hidden = self.input_dropout(self._features(inputs))
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if self.norms:
                hidden = self.norms[index](hidden)
            hidden = self.dropout(torch.relu(hidden))
        logits: Tensor = self.output(hidden)
        return logits

    def _features(self, inputs: Tensor) -> Tensor:
        values = self.normalize(inputs)
        if self.statistics is not None and self.standardize is not None:
            standardized: Tensor = self.standardize(self.statistics(values, ~inputs.isnan()))
            return standardized
        flat: Tensor = (values.permute(0, 2, 3, 1) if self.kind == IMAGE else values).flatten(1)
        if self.kind == SERIES and flat.shape[1] != self.num_features:
            flat = F.pad(flat, (0, self.num_features - flat.shape[1]))
        return flat
