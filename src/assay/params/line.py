"""The training line: the nightly run, the servers, pools and workers."""

from datetime import datetime
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from assay.params.base import Section


class NightlyParams(Section):
    """When the nightly run starts."""

    enabled: bool = True
    """Whether it starts by itself at all."""
    cron: str = "0 2 * * *"
    """Minute, hour, day of month, month, day of week; ``0 2 * * *`` is every night at two."""
    timezone: str = "UTC"
    """IANA time zone that the times are in, e.g. ``Europe/Berlin``."""
    train_when: Literal["changed", "drifted"] = "changed"
    """Train when data, params, code or packages are not the champion's; or on other data only if it drifted."""
    drift_alpha: float = Field(0.01, ge=0.00001, le=0.5)
    """Highest chance that data like the champion's is said to have drifted."""
    import_from: str | None = Field(None, min_length=1)
    """Folder of images, one folder a class, that is imported again first; null takes the data that is pinned."""
    notify: str | None = Field(None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    """Notification block of Prefect to send to, as TYPE/NAME, e.g. ``slack-webhook/team``; null sends nothing."""
    notify_on: tuple[
        Literal["promoted", "first champion", "kept champion", "refused", "skipped", "stopped", "failed"], ...
    ] = ("promoted", "refused", "stopped", "failed")
    """Outcomes of a night that are worth a message."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError

        try:
            CronSim(value, datetime(2000, 1, 1))
        except CronSimError as error:
            raise ValueError(
                f"is no cron expression of five fields ({error}); every night at two is '0 2 * * *'"
            ) from error
        return value

    @field_validator("timezone")
    @classmethod
    def _is_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("is no IANA time zone; one looks like Europe/Berlin or UTC") from error
        return value


Port = Annotated[int, Field(ge=1, le=65535)]


class ServicesParams(Section):
    """The servers, pools and workers of ``assay up``."""

    host: str = Field("127.0.0.1", min_length=1, max_length=253)
    """Address that both servers listen on; another than loopback needs ASSAY_AUTH and `allowed_hosts`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which browsers may reach the servers, besides the loopback ones, e.g. ``train.example.org``."""
    mlflow_port: Port = 5000
    """Port of MLflow."""
    prefect_port: Port = 4200
    """Port of Prefect."""
    cpu_workers: int | None = Field(None, ge=0, le=1024)
    """Workers of pool cpu, one thread each; null is one for each core."""
    gpu_workers: int | None = Field(None, ge=0, le=1024)
    """Workers of pool gpu; null is one for each GPU that is found."""
    tpu_workers: int | None = Field(None, ge=0, le=1024)
    """Workers of pool tpu; null is one for each TPU chip that is found."""
    max_retries: int = Field(3, ge=0, le=100)
    """How often a run that crashed is started again; it goes on from its checkpoint."""
    preload: bool = True
    """Whether runs are forks of a process that has imported what is slow: 0.5 GB a pool for starts seconds sooner."""
