"""Lambda's own runtime client (awslambdaric), speaking to the engine through the channel's secret.

The secret is a path before those of the Runtime API (`local.seams`), in `AWS_LAMBDA_RUNTIME_API` behind the address.
The client's native part takes that as it is; the part in Python, which tells of a handler that cannot be loaded, has
it apart.
"""

import sys
from typing import Any

from awslambdaric import bootstrap
from awslambdaric.lambda_config import LambdaConfigProvider
from awslambdaric.lambda_runtime_client import LambdaRuntimeClient


class Client(LambdaRuntimeClient):  # type: ignore[misc]  # awslambdaric has no types
    """The client, of an address with a path behind it."""

    def __init__(self, address: str, use_thread: bool) -> None:
        host, _, self._path = address.partition("/")
        super().__init__(host, use_thread)

    def call_rapid(self, http_method: str, endpoint: str, *args: Any, **more: Any) -> None:
        """As the base class does it, below the path."""
        super().call_rapid(http_method, f"/{self._path}{endpoint}", *args, **more)


if __name__ == "__main__":
    config = LambdaConfigProvider(sys.argv)
    bootstrap.run(config.handler, Client(config.api_address, config.use_thread_polling))
