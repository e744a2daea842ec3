"""Keeps the receipt where a function that is killed leaves it."""

from collections.abc import Callable

from lambdas.agent.meter import Meter
from lambdas.agent.staged import Staged
from lambdas.receipt import Receipt


class Receipts(Staged):
    """The meter's receipt, at once.

    An empty one is there before the first call: where there is none, nothing was spent. A call goes out while its line
    is written; the next one waits for that. So no more than one call, and those beside it, can be missing in what a
    killed attempt leaves, and where nothing can be written nothing more is spent.
    """

    def __init__(self, meter: Meter, write: Callable[[Receipt], None]) -> None:
        super().__init__("receipt", lambda: write(meter.receipt()), then=meter.look)
        self.changed()  # there is none yet
