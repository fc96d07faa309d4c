"""What the first process of a run tells those that torchrun starts at the same time, before they are joined.

Lightning starts further processes only when the first has its folder; torchrun starts all at once, and keeps a store
that they share.
"""

import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

WAIT = timedelta(hours=1)  # torchrun ends those that wait as soon as another has failed
_told, _heard = itertools.count(), itertools.count()  # both in the same order


def _store() -> Any:
    """The store of torchrun; None where it started no further processes."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from torch.distributed import PrefixStore, TCPStore

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"mtlkit/{attempt}", TCPStore(*place, is_master=False, timeout=WAIT))


def tell_others(value: bool) -> None:
    """Tells the other processes."""
    number, store = next(_told), _store()
    if store is not None:
        store.set(str(number), str(int(value)))


def hear_main(otherwise: Callable[[], bool]) -> bool:
    """What the first process tells, when it does; what `otherwise` returns where they were not started together."""
    number, store = next(_heard), _store()
    return otherwise() if store is None else store.get(str(number)) == b"1"
