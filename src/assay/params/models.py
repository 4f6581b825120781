"""The kinds of model and their sizes: a tagged union on ``kind``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from assay.params.base import Section

Width = Annotated[int, Field(ge=1, le=65536)]


class TokenizerParams(Section):
    """How text becomes tokens; fitted on train only and kept with the model."""

    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    """Which algorithm cuts words into parts."""
    vocab_size: int = Field(8000, ge=16, le=1_000_000)
    """Tokens to tell apart, at most."""
    min_frequency: int = Field(2, ge=1)
    """Occurrences in train below which no token is made of parts."""
    lowercase: bool = True
    """Whether ``Good`` and ``good`` are the same."""


class CnnParams(Section):
    """Convolutional network for images: conv3x3 and pool for each entry of `channels`, then a linear head."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((32, 64), min_length=1, max_length=8)
    """Output channels of each convolution; each is followed by a 2x2 max-pool."""
    hidden_units: int = Field(128, ge=1, le=65536)
    """Width of the fully connected hidden layer; without effect where `head` is ``average``."""
    batch_norm: bool = False
    """Normalise each convolution's output over the batch before it is pooled."""
    residual_blocks: int = Field(0, ge=0, le=16)
    """Residual blocks of two conv3x3 with batch normalisation after each pool."""
    head: Literal["flatten", "average"] = "flatten"
    """Flatten the last maps into a hidden layer, or average each map and go straight to the output."""


class LstmParams(Section):
    """Long short-term memory for text and series."""

    kind: Literal["lstm"] = "lstm"
    embedding_dim: Width = 100
    """Width of a token's vector; text only."""
    hidden_units: Width = 256
    """Width of the state of each layer and direction."""
    num_layers: int = Field(2, ge=1, le=16)
    """Layers on top of each other."""
    bidirectional: bool = True
    """Whether a second LSTM reads backwards."""
    pooling: Literal["last", "mean", "attention"] = "last"
    """How the steps become one vector: the last one, their mean, or a learned weighting."""
    max_length: int = Field(256, ge=1, le=1_000_000)
    """Tokens or steps that are read at most; what is longer is cut at the end."""
    tokenizer: TokenizerParams = TokenizerParams()
    """How text becomes tokens; text only."""


class TransformerParams(Section):
    """Transformer encoder for text, series and (cut into patches) images."""

    kind: Literal["transformer"] = "transformer"
    dim: Width = 128
    """Width of a token's vector throughout; a multiple of `num_heads`."""
    num_layers: int = Field(2, ge=1, le=64)
    """Encoder layers."""
    num_heads: int = Field(4, ge=1, le=256)
    """Attention heads of each layer."""
    feedforward_dim: Width = 256
    """Width of the hidden layer within each encoder layer."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """How a token knows its place."""
    norm: Literal["pre", "post"] = "pre"
    """Layer normalisation before each sublayer, or after its residual sum (as in the original and in BERT)."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Nonlinearity of the feed-forward sublayer."""
    pooling: Literal["mean", "first", "attention"] = "mean"
    """How the tokens become one vector: their mean, a first token of its own, or a learned weighting."""
    patch_size: int = Field(4, ge=1, le=256)
    """Side of the square patches that an image is cut into, in pixels; images only."""
    max_length: int = Field(256, ge=1, le=1_000_000)
    """Tokens or steps that are read at most; what is longer is cut at the end."""
    tokenizer: TokenizerParams = TokenizerParams()
    """How text becomes tokens; text only."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "TransformerParams":
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} is no multiple of num_heads={self.num_heads}")
        return self


class MlpParams(Section):
    """Fully connected layers for tables, for images laid out flat, for the values or the statistics of series."""

    kind: Literal["mlp"] = "mlp"
    features: Literal["values", "statistics"] = "values"
    """What is seen of an example: all its values, or statistics over time of each channel; series only."""
    hidden_units: tuple[Width, ...] = Field((128, 128), max_length=16)
    """Width of each hidden layer; none is multinomial logistic regression."""
    batch_norm: bool = False
    """Normalise each hidden layer over the batch before its nonlinearity."""


ModelParams = Annotated[CnnParams | LstmParams | TransformerParams | MlpParams, Field(discriminator="kind")]
"""Every kind of model."""
