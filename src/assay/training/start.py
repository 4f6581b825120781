"""Where training starts from: files of another model, checked on the bytes that are loaded."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from assay.data.tokenizer import TextEncoder
from assay.errors import ModelFileError, ParamsError
from assay.models.build import build_model
from assay.models.files import SPEC_FILE, load_model
from assay.models.fitting import mismatch
from assay.models.huggingface import read_encoder
from assay.models.huggingface_files import CONFIG_FILE, read_config, read_folder, read_tokenizer
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import HuggingFaceStart, MaskedLanguageStart, ModelParams, StartParams
from assay.records import TEXT, DataRef, StartRef

_HEAD = ("output.", "pooling.")


@dataclass(frozen=True)
class Start:
    """What a run starts from, apart from its own classes and dropout.

    Attributes:
        spec: What the model is that the weights are of; of an encoder without classes it has none.
        tensors: Weights and buffers by name, float32, on the CPU.
    """

    spec: ModelSpec
    tensors: dict[str, Tensor]

    def spec_for(self, ref: DataRef, dropout: DropoutProbs) -> ModelSpec:
        """Return the spec of a model of the same architecture and tokenizer for other data.

        Args:
            ref: The data; it has to be of the same kind and shape.
            dropout: The run's own.

        Raises:
            ParamsError: The model does not take such data.
        """
        spec = replace(self.spec, class_names=ref.class_names, dropout=dropout)
        reason = mismatch(spec, ref)
        if reason is not None:
            raise ParamsError(f"train.start: training cannot start from this model: {reason}. Start from another one.")
        return spec

    def give_to(self, module: nn.Module, class_names: tuple[str, ...]) -> None:
        """Copy the weights into a freshly built module; its output layer stays fresh where the classes differ.

        Args:
            module: A module of the same architecture.
            class_names: Its classes.
        """
        keeps_head = self.spec.class_names == class_names
        own = module.state_dict()
        given = {name: tensor for name, tensor in self.tensors.items() if keeps_head or not name.startswith(_HEAD[0])}
        assert own.keys() - given.keys() <= {name for name in own if name.startswith(_HEAD)}
        module.load_state_dict(own | given)


def read_start(ref: StartRef, params: StartParams) -> Start:
    """Read what a run starts from, and check that it is what it was when the run was planned.

    Args:
        ref: Where it is and what it hashes to.
        params: The run's choice of a start.

    Raises:
        ModelFileError: The files are not whole, not the ones that were planned with, or not understood.
    """
    folder = Path(ref.folder)
    if not isinstance(params, HuggingFaceStart):
        module, spec = load_model(folder, expected_manifest_sha256=ref.digest)
        return Start(spec, dict(module.state_dict()))
    files, digest = read_folder(folder)
    if digest != ref.digest:
        raise ModelFileError(f"{folder}: was changed since the run was planned. Run the same command again.")
    model = read_config(files, folder, params.max_length)
    tokenizer = read_tokenizer(files, folder)
    tensors = read_encoder(files, folder, model)
    num_tokens = len(tensors["tokens.weight"])
    try:
        found = TextEncoder(tokenizer).num_tokens
    except ValueError as error:
        raise ModelFileError(f"{folder}: its tokenizer cannot be used: it {error}.") from error
    if found > num_tokens:
        raise ModelFileError(
            f"{folder}: its tokenizer knows {found} tokens and its weights {num_tokens}. Take files of one model."
        )
    spec = ModelSpec(model, (model.max_length,), (), DropoutProbs(), (), (), TEXT, num_tokens, tokenizer)
    return Start(spec, tensors)


def model_of(ref: StartRef, params: StartParams) -> ModelParams:
    """Return the architecture of what a run starts from, without reading its weights.

    Raises:
        ModelFileError: It is not there or not understood.
    """
    folder = Path(ref.folder)
    name = CONFIG_FILE if isinstance(params, HuggingFaceStart) else SPEC_FILE
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{folder / name}: cannot be read ({error.strerror}). Restore it.") from error
    if isinstance(params, HuggingFaceStart):
        return read_config({CONFIG_FILE: content}, folder, params.max_length)
    try:
        model: ModelParams = TypeAdapter(ModelParams).validate_python(json.loads(content)["model"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ModelFileError(f"{folder / name}: does not describe a model ({error}).") from error
    return model


def require_start(params: StartParams, model: ModelParams, kind: str) -> None:
    """Make sure that a model on such data can start in this way.

    Raises:
        ParamsError: It cannot.
    """
    if isinstance(params, MaskedLanguageStart) and (kind != TEXT or model.kind != "transformer"):
        raise ParamsError(
            f"train.start.kind=masked-language: trains a transformer on texts, and this is a model of kind "
            f"{model.kind} on {kind} data. Choose train.start.kind=scratch."
        )


def fresh_module(spec: ModelSpec, seed: int, start: Start | None) -> nn.Module:
    """Build a run's model, with the weights that it starts from where there are any."""
    module = build_model(spec, seed)
    if start is not None:
        start.give_to(module, spec.class_names)
    return module
