"""Passes a value from the first process of a run to the others under torchrun, before they form a process group.

Lightning starts the other processes only after the first has its folder. torchrun starts all at once, and provides a
store that they share.
"""

import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

WAIT = timedelta(hours=1)  # torchrun ends waiting processes as soon as another has failed
_told, _heard = itertools.count(), itertools.count()  # keys; all processes call in the same order


def _store() -> Any:
    """Returns torchrun's store; None if torchrun did not start several processes."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from torch.distributed import PrefixStore, TCPStore

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"mtlkit/{attempt}", TCPStore(*place, is_master=False, timeout=WAIT))


def tell_others(value: bool) -> None:
    """Sends a value to the other processes."""
    number, store = next(_told), _store()
    if store is not None:
        store.set(str(number), str(int(value)))


def hear_main(otherwise: Callable[[], bool]) -> bool:
    """Waits for the value of the first process; without torchrun, returns the result of `otherwise`."""
    number, store = next(_heard), _store()
    return otherwise() if store is None else store.get(str(number)) == b"1"
