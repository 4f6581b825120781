"""Convolutional networks: [conv3x3, pool, residual blocks] x n, then a hidden layer or an average, then the output."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import DataError
from assay.models.dropout import Dropout
from assay.models.normalize import BatchNormMaps, Normalize
from assay.models.pooled_conv import conv_pool_relu, is_worth_it
from assay.models.pooling import pool_relu
from assay.models.spec import ModelSpec
from assay.params import CnnParams


class Cnn(nn.Module):
    """Convolutions with 2x2 max-pooling, residual blocks where asked for, then a linear head.

    With ``x`` the normalised image, ``*`` a 3x3 convolution with one pixel of zero padding, ``pool`` the maximum
    over 2x2 windows (an odd last row or column is left out) and ``relu(z) = max(z, 0)``::

        h_0 = input_dropout(x)
        h_i = blocks_i(relu(pool(norm(W_i * h_{i-1} + b_i))))    i = 1 .. n, one for each entry of `CnnParams.channels`
        h   = dropout(relu(V flatten(h_n) + c))    where `CnnParams.head` is ``flatten``, `hidden_units` wide
        h   = dropout(mean(h_n))                   where it is ``average``: over the pixels of each channel
        logits = U h + d

    ``relu(pool(z))`` equals the textbook's ``pool(relu(z))``, as both are monotone, and does a quarter of the
    work. ``norm`` is batch normalisation where `CnnParams.batch_norm` asks for it, else nothing. ``blocks_i`` is
    `CnnParams.residual_blocks` times `ResidualBlock`. Dropout zeroes each activation with probability p while training
    and scales the others by 1 / (1 - p): hidden dropout where it says ``dropout``, input dropout on the pixels.
    ``flatten`` goes row by row with the channels of a pixel together, as they lie in memory; its size follows the
    image.

    Attributes:
        normalize: Pixels to zero mean and unit variance.
        convs: The convolutions.
        norms: Batch normalisation after each convolution; empty without.
        blocks: The residual blocks after each pool; empty without.
        hidden: The hidden layer; identity where the maps are averaged.
        input_dropout: Dropout of pixels.
        dropout: Dropout before the output layer.
        output: The output layer.
        rectified: Names of the layers that ReLU follows, for `assay.training.health`.

    Source:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE
        86(11), 1998, section II.B, with ReLU and max-pooling (Krizhevsky et al., NeurIPS 2012, section 3) and
        dropout (Srivastava et al., JMLR 15, 2014, section 4). Batch normalisation: Ioffe and Szegedy, ICML 2015,
        algorithms 1 and 2. Average: Lin, Chen, Yan, "Network in network", ICLR 2014, section 3.2.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        params = spec.model
        if not isinstance(params, CnnParams):
            raise TypeError(f"a Cnn is made of CnnParams, not of {type(params).__name__}")
        height, width, image_channels = spec.image_shape
        channels = (image_channels, *params.channels)
        num_pools = len(params.channels)
        if min(height, width) < 2**num_pools:
            raise DataError(
                f"images of {height}x{width} pixels are too small for {num_pools} poolings: each halves the image. "
                f"Give model.channels at most {min(height, width).bit_length() - 1} entries, or larger images."
            )
        self.normalize = Normalize(spec.mean, spec.std)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1) for before, after in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(BatchNormMaps(width) for width in params.channels if params.batch_norm)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(params.residual_blocks)))
            for width in params.channels
            if params.residual_blocks
        )
        self.averages = params.head == "average"
        flat = channels[-1] * (height >> num_pools) * (width >> num_pools)
        features = channels[-1] if self.averages else params.hidden_units
        self.hidden = nn.Identity() if self.averages else nn.Linear(flat, features)
        self.input_dropout = Dropout(spec.dropout.input)
        self.dropout = Dropout(spec.dropout.hidden)
        self.output = nn.Linear(features, spec.num_classes)
        self._image_size = height, width
        self._has_own_loops = (False,) * num_pools
        before_relu = "norms" if self.norms else "convs"
        head = () if self.averages else ("hidden",)
        self.rectified = (*(f"{before_relu}.{number}" for number in range(num_pools)), *head)

    def prepare_training(self, num_examples: int, num_threads: int, kind: torch.dtype) -> bool:
        """Choose what computes each layer: torch, or `assay.models.pooled_conv` where that pays.

        Args:
            num_examples: Examples that all epochs of the training read together, at most.
            num_threads: Threads of the CPU that it computes with.
            kind: Type that it computes in.

        Returns:
            Whether any layer does without torch, which rounds otherwise.
        """
        height, width = self._image_size
        self._has_own_loops = tuple(
            not self.norms and is_worth_it(conv, height >> place, width >> place, num_examples, num_threads, kind)
            for place, conv in enumerate(self.convs)
            if isinstance(conv, nn.Conv2d)
        )
        return any(self._has_own_loops)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Return the logits of a batch.

        Args:
            images: Raw pixel values, 0 to 255, as floats.

        Returns:
            One logit for each class.
        """
        features = self.input_dropout(self.normalize(images))
        for index, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            if self._has_own_loops[index] and not _is_watched(conv):
                features = conv_pool_relu(features, conv)
            else:
                features = conv(features)
                if self.norms:
                    features = self.norms[index](features)
                features = pool_relu(features)
            if self.blocks:
                features = self.blocks[index](features)
        if self.averages:
            hidden = features.mean((2, 3))
        else:
            hidden = torch.relu(self.hidden(features.permute(0, 2, 3, 1).flatten(1)))
        logits: Tensor = self.output(self.dropout(hidden))
        return logits


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody is to be told what a layer itself gives, which a loop of our own never writes."""
    return bool(layer._forward_hooks)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to what came in; width and size stay.

    ::

        y = relu(x + norm2(W2 * relu(norm1(W1 * x))))

    The gain of ``norm2`` starts at 0, so that a fresh block passes on what comes in: ``x`` is not negative, being
    rectified.

    Args:
        width: Channels.

    Source:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, equation 1 and section 3.3;
        the gain of 0: Goyal et al., "Accurate, large minibatch SGD", 2017, section 5.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm1 = BatchNormMaps(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2 = BatchNormMaps(width)
        nn.init.zeros_(self.norm2.weight)
        self.rectified = ("norm1",)

    def forward(
        self, features: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the activations, not negative."""
        inner = torch.relu(self.norm1(self.conv1(features)))
        return torch.relu(features + self.norm2(self.conv2(inner)))
