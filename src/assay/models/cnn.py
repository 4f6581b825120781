"""The classic convolutional network: [conv3x3, pool] x n, one hidden layer, one output layer."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import DataError
from assay.models.normalize import Normalize
from assay.models.pooling import pool_relu
from assay.models.spec import ModelSpec


class Cnn(nn.Module):
    """Convolutions with 2x2 max-pooling, then two fully connected layers.

    With ``x`` the normalised image, ``*`` a 3x3 convolution with one pixel of zero padding, ``pool`` the maximum
    over 2x2 windows (an odd last row or column is left out) and ``relu(z) = max(z, 0)``::

        h_0 = x
        h_i = relu(pool(norm(W_i * h_{i-1} + b_i)))    i = 1 .. n, one for each entry of `CnnParams.channels`
        h   = dropout(relu(V flatten(h_n) + c))        `CnnParams.hidden_units` wide
        logits = U h + d

    ``relu(pool(z))`` equals the textbook's ``pool(relu(z))``, as both are monotone, and does a quarter of the
    work. ``norm`` is batch normalisation where `CnnParams.batch_norm` asks for it, else nothing. Dropout zeroes each
    hidden activation with probability p while training and scales the others by 1 / (1 - p). ``flatten`` goes row by
    row with the channels of a pixel together, as they lie in memory; its size follows the image.

    Attributes:
        normalize: Pixels to zero mean and unit variance.
        convs: The convolutions.
        norms: Batch normalisation after each convolution; empty without.
        hidden: The hidden layer.
        dropout: Dropout after the hidden layer.
        output: The output layer.

    Source:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE
        86(11), 1998, section II.B, with ReLU and max-pooling (Krizhevsky et al., NeurIPS 2012, section 3) and
        dropout (Srivastava et al., JMLR 15, 2014, section 4). Batch normalisation: Ioffe and Szegedy, ICML 2015,
        algorithms 1 and 2.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        height, width, image_channels = spec.image_shape
        channels = (image_channels, *spec.model.channels)
        num_pools = len(spec.model.channels)
        if min(height, width) < 2**num_pools:
            raise DataError(
                f"images of {height}x{width} pixels are too small for {num_pools} poolings: each halves the image. "
                f"Give model.channels at most {min(height, width).bit_length() - 1} entries, or larger images."
            )
        self.normalize = Normalize(spec.pixel_mean, spec.pixel_std)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1) for before, after in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in spec.model.channels if spec.model.batch_norm)
        flat = channels[-1] * (height >> num_pools) * (width >> num_pools)
        self.hidden = nn.Linear(flat, spec.model.hidden_units)
        self.dropout = nn.Dropout(spec.dropout_prob)
        self.output = nn.Linear(spec.model.hidden_units, spec.num_classes)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Return the logits of a batch.

        Args:
            images: Raw pixel values, 0 to 255, as floats.

        Returns:
            One logit for each class.
        """
        features = self.normalize(images)
        for index, conv in enumerate(self.convs):
            features = conv(features)
            if self.norms:
                features = self.norms[index](features)
            features = pool_relu(features)
        hidden = torch.relu(self.hidden(features.permute(0, 2, 3, 1).flatten(1)))
        logits: Tensor = self.output(self.dropout(hidden))
        return logits
