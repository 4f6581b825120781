"""A message about a night, through a notification block of Prefect; nothing is sent unless one is named."""

import inspect
import logging
import re
from typing import Any

from prefect.blocks.core import Block
from prefect.utilities.asyncutils import run_coro_as_sync

from assay.params import NightlyParams
from assay.records import NightRecord

_ADDRESS = re.compile(r"(\w+://)(?:[^/\s'\"@]*@)?([^/\s'\"]+)[^\s'\"]*")
"""An address whose path may be a password, as a chat's web hooks are."""

_log = logging.getLogger(__name__)


def notify(schedule: NightlyParams, record: NightRecord) -> bool:
    """Send one message, if the params name a block and the outcome is worth one.

    What goes wrong with it is logged, and the night stands: a chat that is down is no reason to lose a model.

    Args:
        schedule: Names the block and the outcomes.
        record: The night.

    Returns:
        Whether a message was sent.
    """
    if schedule.notify is None or record.outcome not in schedule.notify_on:
        return False
    try:
        run_coro_as_sync(
            _send(
                schedule.notify,
                f"{record.model_name}: {record.describe()}.",
                subject=f"Assay, the night of {record.due[:10]}",
            )
        )
    except Exception as error:
        words = _ADDRESS.sub(r"\1\2/...", str(error))
        _log.warning("No message was sent to %s: %s: %s", schedule.notify, type(error).__name__, words)
        return False
    return True


async def _send(name: str, body: str, subject: str) -> None:
    block: Any = await Block.aload(name)
    sent = block.notify(body, subject=subject)
    if inspect.isawaitable(sent):
        await sent
