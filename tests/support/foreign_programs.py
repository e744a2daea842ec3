"""Programs of others that some tests drive: required in CI, skipped with a sentence where a newcomer lacks them."""

import os
import shutil
from typing import NoReturn

import pytest


def program(package: str, *names: str) -> str:
    """The path of the first of `names` that is there; without any, it is `missing`."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or missing(f"{' or '.join(names)} is missing: install it (Debian's package {package}).")


def missing(sentence: str) -> NoReturn:
    """Without what the sentence names, the test fails in CI and is skipped elsewhere."""
    if in_ci():
        pytest.fail(sentence)
    pytest.skip(sentence)


def in_ci() -> bool:
    """Whether everything that is needed has to be there."""
    return os.environ.get("CI", "").lower() in ("true", "1")
