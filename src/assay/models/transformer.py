"""Transformer encoder for text, series and images cut into patches."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.models.attention import MASKED, SelfAttention
from assay.models.dropout import Dropout
from assay.models.normalize import Normalize, NormalizeFeatures
from assay.models.spec import ModelSpec
from assay.models.steps import AttentionPooling, MeanPooling, present_steps
from assay.params import TransformerParams
from assay.records import IMAGE, TEXT

_INITIAL_STD = 0.02

Inputs = Int[Tensor, "batch token"] | Float[Tensor, "batch token channel"] | Float[Tensor, "batch channel height width"]


class Transformer(nn.Module):
    """Encoder layers over a sequence of tokens, the tokens made one vector, an output layer.

    A text's tokens are those of its tokenizer, a series' tokens are its steps, an image's tokens are its square
    patches, row by row (the last row and column are filled up with the mean). ``e_t`` is a text token's learned
    vector, else a linear map of the normalised step or patch; ``p_t`` is what tells its place::

        z_0 = dropout(e_t + p_t)                 norm=pre
        z_0 = dropout(norm(e_t + p_t))           norm=post
        z_l = layer_l(z_{l-1})                   l = 1 .. `TransformerParams.num_layers`, see `EncoderLayer`
        z   = norm(z_L)                          norm=pre; as it is with norm=post
        logits = U dropout(pool(z)) + d

    ``pool`` is the mean over the tokens, a learned weighting (`assay.models.steps`), or ``first``: a vector of its own,
    learned, stands before the tokens, and what became of it is taken. ``p_t`` is learned, or sines and cosines of
    wavelengths 2 pi to 10000 x 2 pi. Padding takes no part in attention or pooling.

    Dropout zeroes each value with probability p while training and scales the others by 1 / (1 - p): input dropout on
    the components of a text token's vector, on the features of a step or on the pixels; hidden dropout on ``z_0``,
    after each sublayer and before the output layer; attention dropout on attention weights.

    With norm=post, activation=gelu, learned positions and first pooling this is BERT: its ``[CLS]`` vector is `first`,
    and its segment vector belongs into `positions`, to every row the same.

    Attributes:
        tokens: ``e``: a vector for each token number, or the linear map.
        normalize: Each channel to zero mean and unit variance; not for text.
        first: The vector before the tokens; None where pooling is another.
        positions: ``p``, learned; None where they are sines and cosines.
        layers: The encoder layers.
        norm: The layer normalisation at the start (post) or at the end (pre).
        pooling: The tokens to one vector; identity for ``first``.
        input_dropout: Dropout of the components of an input.
        dropout: Hidden dropout.
        output: The output layer.

    Source:
        Vaswani et al., "Attention is all you need", NeurIPS 2017, sections 3.1 to 3.5. Normalisation before each
        sublayer: Xiong et al., ICML 2020. ``first``: Devlin et al., "BERT", NAACL 2019, section 3. Patches:
        Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1.
    """

    sinusoids: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        params = spec.model
        if not isinstance(params, TransformerParams):
            raise TypeError(f"a Transformer is made of TransformerParams, not of {type(params).__name__}")
        self.kind = spec.kind
        self.patch_size = params.patch_size
        self.is_post = params.norm == "post"
        if spec.kind == TEXT:
            self.tokens: nn.Embedding | nn.Linear = nn.Embedding(spec.num_tokens, params.dim, padding_idx=0)
        else:
            self.normalize = (Normalize if spec.kind == IMAGE else NormalizeFeatures)(spec.mean, spec.std)
            self.tokens = nn.Linear(spec.shape[-1] * (params.patch_size**2 if spec.kind == IMAGE else 1), params.dim)
        is_first = params.pooling == "first"
        self.first = nn.Parameter(torch.empty(params.dim)) if is_first else None
        length = _num_tokens(spec, params) + is_first
        is_learned = params.positions == "learned"
        self.positions = nn.Embedding(length, params.dim) if is_learned else None
        self.register_buffer("sinusoids", None if is_learned else sinusoids(length, params.dim), persistent=False)
        self.layers = nn.ModuleList(
            EncoderLayer(params, spec.dropout.hidden, spec.dropout.attention) for _ in range(params.num_layers)
        )
        self.norm = nn.LayerNorm(params.dim, eps=_eps(params))
        self.pooling = {"first": nn.Identity, "mean": MeanPooling}.get(
            params.pooling, lambda: AttentionPooling(params.dim)
        )()
        self.input_dropout = Dropout(spec.dropout.input)
        self.dropout = Dropout(spec.dropout.hidden)
        self.output = nn.Linear(params.dim, spec.num_classes)
        self._initialize()

    def forward(self, inputs: Inputs) -> Float[Tensor, "batch class"]:
        """Return the logits of a batch.

        Args:
            inputs: Token numbers, series or images, as `ModelSpec` says.

        Returns:
            One logit for each class.
        """
        present = self._present(inputs)
        states = self._encode(inputs, present)
        logits: Tensor = self.output(self.dropout(self._pool(states, present)))
        return logits

    def encode(self, inputs: Inputs) -> Float[Tensor, "batch position dim"]:
        """Return a vector for each token, before pooling.

        Args:
            inputs: Token numbers, series or images, as `ModelSpec` says.

        Returns:
            Vectors in the tokens' order, after that of `first` where there is one. Those of padding mean nothing.
        """
        return self._encode(inputs, self._present(inputs))

    @torch.no_grad()
    def attention_weights(self, inputs: Inputs) -> Float[Tensor, "layer batch head position position"]:
        """Return how much each token looks at each other.

        Args:
            inputs: Token numbers, series or images, as `ModelSpec` says.

        Returns:
            Weights ``[layer, batch, head, query, key]``, which sum to 1 over keys and are 0 where the key is padding.
        """
        present = self._present(inputs)
        states, bias, weights = self._embed(inputs), _bias(present), []
        for layer in self._layers():
            seen = states if self.is_post else layer.attention_norm(states)
            weights.append(layer.attention.weights(seen, bias))
            states = layer(states, bias)
        return torch.stack(weights)

    def _encode(self, inputs: Tensor, present: Tensor | None) -> Tensor:
        states, bias = self._embed(inputs), _bias(present)
        for layer in self._layers():
            states = layer(states, bias)
        return states if self.is_post else self.norm(states)

    def _layers(self) -> Iterator["EncoderLayer"]:
        return (layer for layer in self.layers if isinstance(layer, EncoderLayer))

    def _pool(self, states: Tensor, present: Tensor | None) -> Tensor:
        if self.first is not None:
            return states[:, 0]
        if present is None:
            present = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        pooled: Tensor = self.pooling(states, present)
        return pooled

    def _present(self, inputs: Tensor) -> Tensor | None:
        """Return where there is no padding, `first` included ``[batch, position]``; None where there never is."""
        if self.kind == IMAGE:
            return None
        present = present_steps(inputs)
        return present if self.first is None else F.pad(present, (1, 0), value=True)

    def _embed(self, inputs: Tensor) -> Tensor:
        if self.kind == TEXT:
            vectors = self.input_dropout(self.tokens(inputs))
        else:
            values = self.input_dropout(self.normalize(inputs))
            vectors = self.tokens(patches(values, self.patch_size) if self.kind == IMAGE else values)
        if self.first is not None:
            first = self.first.to(vectors.dtype).expand(vectors.shape[0], 1, -1)
            vectors = torch.cat((first, vectors), 1)
        table = self.sinusoids if self.positions is None else self.positions.weight
        vectors = vectors + table[: vectors.shape[1]].to(vectors.dtype)
        result: Tensor = self.dropout(self.norm(vectors) if self.is_post else vectors)
        return result

    def _initialize(self) -> None:
        """Give linear layers Glorot's weights and no bias, and vectors small ones.

        Beside sines, which are of size 1, a text token's vector is, too.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.first is not None:
            nn.init.normal_(self.first, std=_INITIAL_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=_INITIAL_STD)
        if isinstance(self.tokens, nn.Embedding):
            nn.init.normal_(self.tokens.weight, std=1.0 if self.positions is None else _INITIAL_STD)
            with torch.no_grad():
                self.tokens.weight[0] = 0


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network for each token, each added to what came in.

    ::

        norm=pre:   y = x + dropout(attention(norm(x)))     z = y + dropout(feedforward(norm(y)))
        norm=post:  y = norm(x + dropout(attention(x)))     z = norm(y + dropout(feedforward(y)))
        feedforward(y) = W act(V y + b) + c                 `TransformerParams.feedforward_dim` wide inside

    ``act`` is ``relu`` or the exact ``gelu(z) = z P(N(0, 1) <= z)``.

    Args:
        params: Sizes and form.
        drop_prob: Probability of dropping a hidden activation while training.
        attention_drop_prob: Probability of dropping an attention weight while training.

    Source:
        Vaswani et al., NeurIPS 2017, sections 3.1 and 3.3; Xiong et al., "On layer normalization in the transformer
        architecture", ICML 2020, table 1; Hendrycks and Gimpel, "Gaussian error linear units", 2016.
    """

    def __init__(self, params: TransformerParams, drop_prob: float, attention_drop_prob: float) -> None:
        super().__init__()
        self.is_post = params.norm == "post"
        self.is_gelu = params.activation == "gelu"
        self.attention = SelfAttention(params.dim, params.num_heads, attention_drop_prob)
        self.attention_norm = nn.LayerNorm(params.dim, eps=_eps(params))
        self.widen = nn.Linear(params.dim, params.feedforward_dim)
        self.narrow = nn.Linear(params.feedforward_dim, params.dim)
        self.feedforward_norm = nn.LayerNorm(params.dim, eps=_eps(params))
        self.dropout = Dropout(drop_prob)
        self.rectified = () if self.is_gelu else ("widen",)

    def forward(
        self, states: Float[Tensor, "batch token dim"], bias: Float[Tensor, "batch 1 1 token"] | None
    ) -> Float[Tensor, "batch token dim"]:
        """Return the tokens' next vectors.

        Args:
            states: A vector for each token.
            bias: Added to the attention scores: 0, or `MASKED` where a key is padding; None without padding.
        """
        if self.is_post:
            states = self.attention_norm(states + self.dropout(self.attention(states, bias)))
            normed: Tensor = self.feedforward_norm(states + self.dropout(self._feedforward(states)))
            return normed
        states = states + self.dropout(self.attention(self.attention_norm(states), bias))
        result: Tensor = states + self.dropout(self._feedforward(self.feedforward_norm(states)))
        return result

    def _feedforward(self, states: Tensor) -> Tensor:
        inner = self.widen(states)
        result: Tensor = self.narrow(F.gelu(inner) if self.is_gelu else torch.relu(inner))
        return result


def sinusoids(length: int, dim: int) -> Float[Tensor, "{length} {dim}"]:
    """Return positions as sines (even components) and cosines (odd ones).

    Source:
        Vaswani et al., NeurIPS 2017, section 3.5.
    """
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[:, :dim]


def patches(
    images: Float[Tensor, "batch channel height width"], size: int
) -> Float[Tensor, "batch patch {size}*{size}*channel"]:
    """Cut images into squares, row by row, each laid out row by row with the channels of a pixel together.

    Args:
        images: Normalised pixels.
        size: Side of a square; what is missing in the last ones is 0.
    """
    height, width = images.shape[2:]
    filled = F.pad(images, (0, -width % size, 0, -height % size))
    rows, columns = filled.shape[2] // size, filled.shape[3] // size
    squares = filled.reshape(*images.shape[:2], rows, size, columns, size)
    return squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _num_tokens(spec: ModelSpec, params: TransformerParams) -> int:
    if spec.kind != IMAGE:
        return spec.shape[0]
    height, width, _ = spec.image_shape
    return math.ceil(height / params.patch_size) * math.ceil(width / params.patch_size)


def _eps(params: TransformerParams) -> float:
    """Return what layer normalisation adds to the variance: BERT's constant with norm=post, else torch's."""
    return 1e-12 if params.norm == "post" else 1e-5


def _bias(present: Bool[Tensor, "batch position"] | None) -> Tensor | None:
    return None if present is None else (~present).float().mul(MASKED)[:, None, None, :]
