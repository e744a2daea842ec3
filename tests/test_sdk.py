"""What the SDK is imported without."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import sys
import lambdas.run_claude
loaded = {"mcp", "pydantic", "httpx", "starlette"} & set(sys.modules)
from mcp.types import Tool
print(*loaded, Tool.model_validate({"name": "a", "inputSchema": {}}).name)
"""


def test_a_runs_function_starts_without_mcp() -> None:
    """It takes two thirds of the time, and is for what a run has not; who imports it after that has the real one."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("a\n", "")
