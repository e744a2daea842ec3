"""Synthesizes the stack from cdk.json, for the cdk CLI (by `app.py`) and for `python -m stacks` alike.

It needs no AWS account, no Docker and no network.
"""

import os
import sys

from stacks.deployment import BadContext
from stacks.workflow import synthesize


def main() -> None:
    """The cdk CLI says by `CDK_OUTDIR` where it looks for the result."""
    try:
        synthesize(os.environ.get("CDK_OUTDIR", "cdk.out"))
    except BadContext as wrong:
        sys.exit(str(wrong))


if __name__ == "__main__":
    main()
