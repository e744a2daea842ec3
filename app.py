"""Synthesizes the stack from cdk.json, for the cdk CLI and for `python app.py` alike.

It needs no AWS account, no Docker and no network.
"""

import os
import sys

from stacks.deployment import BadContext
from stacks.workflow import synthesize

if __name__ == "__main__":
    try:
        # The cdk CLI says by this variable where it looks for the result.
        synthesize(os.environ.get("CDK_OUTDIR", "cdk.out"))
    except BadContext as wrong:
        sys.exit(str(wrong))
