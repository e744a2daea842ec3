"""Programs of others that some tests drive: required in CI, skipped with a sentence where a newcomer lacks them."""

import os
import shutil

import pytest


def program(package: str, *names: str) -> str:
    """The path of the first of `names` that is there; without any, the test fails in CI and is skipped elsewhere."""
    for name in names:
        if found := shutil.which(name):
            return found
    sentence = f"{' or '.join(names)} is missing: install it (Debian's package {package})."
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(sentence)
    pytest.skip(sentence)
