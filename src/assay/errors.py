"""Every error that Assay raises on purpose.

The tree::

    AssayError                 exit code 2: the request was wrong; one paragraph, no traceback
    ├── ParamsError            params.yaml or an override
    ├── ProjectError           no project here, or its folder cannot be written
    ├── DataError              the examples themselves
    │   ├── SourceError        a source that is missing, empty or unreadable
    │   ├── BadExampleError    one example that cannot be decoded
    │   └── PinMismatchError   bytes that are not the pinned bytes
    ├── StorageError           no disk space, read-only directory
    ├── DeviceError            a device that is not there
    ├── ServiceError           a named MLflow or Prefect server that does not answer
    ├── ModelFileError         a model file that is not what its manifest says
    └── RunFailedError         exit code 1: the request was right, the run failed
        └── NonFiniteError     NaN or Inf while training

A message says what, where, what was found and what to do.
"""


class AssayError(Exception):
    """Base of every error that Assay raises on purpose; shown as one paragraph."""

    exit_code = 2


class ParamsError(AssayError):
    """A parameter that is unknown, mistyped or out of range."""


class ProjectError(AssayError):
    """No project at or above the current folder, or its folder cannot be used."""


class DataError(AssayError):
    """Something about the examples that a run cannot live with."""


class SourceError(DataError):
    """A data source that is missing, empty, one-class or unknown."""


class BadExampleError(DataError):
    """One example that cannot be decoded, by name."""


class PinMismatchError(DataError):
    """Data bytes that differ from what data.dvc pins."""


class StorageError(AssayError):
    """A folder that cannot be written or has no space left."""


class DeviceError(AssayError):
    """A device or precision that this machine does not have."""


class ServiceError(AssayError):
    """A server that was named and does not answer."""


class ModelFileError(AssayError):
    """A model file that is missing, truncated or not what its manifest says."""


class RunFailedError(AssayError):
    """The request was right and the run failed."""

    exit_code = 1


class NonFiniteError(RunFailedError):
    """A loss, activation or gradient became NaN or infinite; nothing was updated with it."""
