"""A service whose long runs have short legs."""

import json
from pathlib import Path

LIMITLESS = {"MAX_TURNS": "100000", "MAX_BUDGET_USD": "100000"} | dict.fromkeys(
    ("MAX_CALLER_USD_PER_DAY", "MAX_USD_PER_DAY"), "null"
)
"""What RestoreSession lets a run have that has hundreds of steps."""


def shorten(state: Path, gate: float, limit: float) -> None:
    """In the template that a service of this state directory is made from; both in seconds."""
    (file,) = state.glob("template-*.json")
    template = json.loads(file.read_text())
    for resource in template["Resources"].values():
        variables = resource.get("Properties", {}).get("Environment", {}).get("Variables", {})
        if "LEG_GATE_SECONDS" in variables:
            variables |= {"LEG_GATE_SECONDS": str(gate), "LEG_LIMIT_SECONDS": str(limit)} | LIMITLESS
    file.write_text(json.dumps(template))
