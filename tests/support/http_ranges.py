"""HTTP's Range header, as the servers of the tests understand it."""

import re


def extent(header: str, size: int) -> tuple[int, int]:
    """From where up to where `bytes=A-B` or `bytes=-N` reaches, of an object of `size` bytes."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    assert asked
    if asked[1]:
        return int(asked[1]), min(size, int(asked[2]) + 1)
    return max(0, size - int(asked[2])), size
