"""Checks that the configured server answers, takes the key, and knows repeated requests.

`hindsight-exec doctor` and `hermes memory setup` show them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hindsight_exec.client.api import HindsightClient
from hindsight_exec.client.loop import background_loop
from hindsight_exec.errors import Rejected, ServerError, Unauthorized
from hindsight_exec.executor.waiting import now

from . import embedded
from .memories import memories
from .recall import LONGEST_WAIT

if TYPE_CHECKING:
    from hindsight_exec.settings.config import Settings

# From this version on a retain that is sent again is told by its operation id.
_KNOWS_OPERATIONS = (0, 8, 6)
# Seconds that somebody at the terminal waits for a server that hangs.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do about it."""

    name: str
    state: str  # "ok", "warning" or "failed"
    found: str
    remedy: str = ""


def server_checks(settings: Settings) -> list[Check]:
    """Whether the configured server answers, which version it is, and whether it takes the key."""
    if settings.mode != "local_embedded":
        return background_loop().run(_ask(settings)).result()
    name = "embedded server"
    problem = embedded.missing(settings)
    if problem:
        why, _, remedy = problem.partition(": ")
        return [Check(name, "failed", why, remedy)]
    if not embedded.program():
        remedy = "pip install hindsight-all beside hindsight-exec, or install uv"
        return [Check(name, "failed", "neither hindsight-api nor uvx is there", remedy)]
    url = embedded.address(settings)
    checks = background_loop().run(_ask(replace(settings, api_url=url))).result() if url else []
    if not checks or checks[0].state == "failed":
        log = embedded.log_of(settings)
        found = f"profile {settings.profile} does not run; it is started when it is needed"
        return [Check(name, "warning", found, f"if it never comes up, see {log}")]
    return checks


async def _ask(settings: Settings) -> list[Check]:
    checks = []
    client = HindsightClient(settings.api_url, api_key=settings.api_key, timeout=_PATIENCE)
    async with client:
        try:
            version = await client.version()
        except ServerError as error:
            remedy = "start it, or correct the URL; 'hindsight-exec serve' runs an embedded one"
            return [Check("server", "failed", str(error), remedy)]
        checks.append(_version(settings.api_url, version))
        try:
            await client.documents(settings.bank_id, limit=1)
        except Unauthorized as error:
            remedy = "set HINDSIGHT_API_KEY to the key of this server"
            checks.append(Check("key", "failed", str(error), remedy))
        except Rejected as error:
            if error.status != 404:  # the bank is made by its first retain
                checks.append(Check("bank", "failed", str(error), "choose another bank"))
            else:
                checks.append(Check("key", "ok", "accepted; the bank will be created on first use"))
        except ServerError as error:
            checks.append(Check("server", "failed", str(error), "see the server's log"))
        else:
            checks.append(Check("key", "ok", "accepted" if settings.api_key else "none is needed"))
            checks.append(await _recall(client, settings))
    return checks


async def _recall(client: HindsightClient, settings: Settings) -> Check:
    """Whether a real recall works, as a turn asks for it, and whether it is fast enough."""
    start = now()
    try:
        found = await memories(client, settings, settings.bank_id, "what is known of the user?")
    except ServerError as error:
        return Check("recall", "failed", str(error), "correct the recall_… keys it names, if any")
    took, wait = now() - start, min(settings.recall_wait_seconds, LONGEST_WAIT)
    count = f"{len(found)} {'memory' if len(found) == 1 else 'memories'} in {took:.1f} s"
    if took > wait:
        remedy = "raise recall_wait_seconds, lower recall_budget, or see why the server is slow"
        return Check("recall", "warning", f"{count}, and a turn waits for {wait:g} s", remedy)
    return Check("recall", "ok", count)


def _version(url: str, version: str) -> Check:
    found = f"{url}, version {version}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < _KNOWS_OPERATIONS:
        return Check(
            "server",
            "warning",
            found,
            "0.8.6 and later know a repeated request; documents are stored once all the same",
        )
    return Check("server", "ok", found)
