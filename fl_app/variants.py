"""Several runs in one start of the engine: one ServerApp plays them one after the other on one grid.

One run is submitted. Its key `variants` is a list: for each run that is to be played, the keys in which it differs from
the one submitted. Every node has the list in its run config, and every message of the server holds the number, counted
from 0, of the run that it belongs to.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from logging import ERROR, INFO
from typing import Any

from flwr.common.logger import log

from fl_app.config import RunConfig
from fl_app.errors import Refused, one_line

VARIANT = "variant"  # the key of a message's config that holds the number


def variants_text(common: RunConfig, configs: Sequence[RunConfig]) -> str:
    """The value of `variants` in `common` for these runs."""
    return json.dumps([differences(common, config) for config in configs])


def differences(common: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The keys of a run that are not as in the common configuration."""
    usual = common.values()
    return {key: value for key, value in config.values().items() if value != usual[key]}


def variant_config(run_config: Mapping[str, Any], variant: int | None) -> RunConfig:
    """The configuration of the run with the number `variant`; with None, that of a run that is played alone.

    The same on the server and on every node. Raises Refused, also for a number that is not in the list.
    """
    if variant is None:
        return RunConfig.parse(run_config)
    found = _variants(str(run_config.get("variants", "")))
    if not 0 <= variant < len(found):
        raise Refused(f"no variant {variant}", "variants", f"the run has {len(found)}")
    return RunConfig.parse({**run_config, "variants": "", **found[variant]})


def variant_of(message_config: Mapping[str, Any]) -> int | None:
    """The number of the run that a message belongs to; None for a run that is played alone."""
    variant = message_config.get(VARIANT)
    return None if variant is None else int(variant)


def variant_entry(variant: int | None) -> dict[str, int]:
    """The entry of a message's config that names its run; no entry for a run that is played alone."""
    return {} if variant is None else {VARIANT: variant}


def play(run_config: Mapping[str, Any], serve: Callable[[RunConfig, int], object]) -> None:
    """Serve the runs one after the other. Where one fails the others are played all the same, and this raises then."""
    total = len(_variants(str(run_config["variants"])))
    failed = 0
    for number in range(total):
        log(INFO, "run %d of %d", number + 1, total)
        try:
            serve(variant_config(run_config, number), number)
        except Exception as error:  # it has its summary; what a task or a strategy may raise is not known
            failed += 1
            log(ERROR, "run %d of %d failed: %s", number + 1, total, one_line(f"{type(error).__name__}: {error}"))
    if failed:
        raise RuntimeError(f"{failed} of {total} runs failed")


@lru_cache(maxsize=4)
def _variants(text: str) -> tuple[Mapping[str, Any], ...]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refused("no JSON", f"variants={text!r}", "it is set by fl-app compare") from error
    if not isinstance(found, list) or not found or not all(isinstance(item, dict) for item in found):
        raise Refused("no list of keys", f"variants={text!r}", "it is set by fl-app compare")
    return tuple(found)
