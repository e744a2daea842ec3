"""The list of walls that `tests.mutations` takes away is whole, and each of its rows can be tried."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations import ROOT, WALLS, Wall

FILES = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
PROMISED = (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("wall", WALLS, ids=lambda wall: f"{wall.file}: {wall.name}")
def test_a_wall_is_where_the_list_has_it(wall: Wall) -> None:
    """Once, as it is taken away; and its tests are there."""
    assert (ROOT / wall.file).read_text().count(wall.old) == 1
    for test in wall.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in FILES[file] if name else file in FILES


def _named() -> Iterator[str]:
    return (found[1] for found in re.finditer(r"`(test_\w+)`", PROMISED))


def test_what_is_promised_names_tests_that_are_there() -> None:
    """Those of SECURITY.md, by name or by file."""
    missing = [name for name in _named() if not any(f"def {name}(" in text for text in FILES.values())]
    files = [found for found in re.findall(r"`(tests/test_\w+\.py)`", PROMISED) if not Path(ROOT, found).exists()]
    assert (missing, files) == ([], [])
