"""What commands print, as text that is the same at each run: ids, times, costs and places are others every time."""

import re
from pathlib import Path

from tests.support.commands import ROOT, plain

SCREENS = ROOT / "tests/screens"

SAME: list[tuple[str, str]] = [
    (r" --state \S+", ""),  # as where the service keeps its sessions in the usual place
    (r"\.venv/bin/", ""),
    (r"kept in \S+\. ", "kept in DIR. "),
    (r"kept from your files by .+\.", "kept from your files by WALL."),
    (r"^It has (?:a|no) network of its own.+$", "It has a NETWORK."),
    (r"http://127\.0\.0\.1:\d+/", "http://127.0.0.1:8000/"),
    (r"\?secret=[\w…-]+", "?secret=SECRET"),
    (r"x-api-key: [^\s']+", "x-api-key: KEY"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-27 05:00:00"),
    (r"(?<!-)\d\d-\d\d \d\d:\d\d:\d\d", "11-27 05:00:00"),
    (r"\d\d:\d\d:\d\d\.\d{3}", "05:00:00.000"),
    (r"  \d+ ms  ", "  10 ms  "),
    (r"(calls?), \d+\.\d s", r"\1, 1.0 s"),
    (r" +\d+\.\d{3} s", " 1.000 s"),
    (r" +=+$", "  ="),
    (r"Execution [\w-]+", "Execution NAME"),
    (r"^Receipt of [\w-]+", "Receipt of ATTEMPT"),
    (r"\$\d\.\d{4}", "$0.0500"),
    (r"\d+ S3 requests: .*", "9 S3 requests: …"),
]


PASSING = re.compile(r"^(Replaying |.*[\u2801-\u28ff] ).*\n?", re.MULTILINE)
"""A line of progress, which the terminal has wiped out again."""


def same(seen: str) -> str:
    """A screen without what differs from run to run, and as wide as it was."""
    text = PASSING.sub("", plain(seen))
    for pattern, stands in SAME:
        text = re.sub(pattern, stands, text, flags=re.MULTILINE)
    text = re.sub(r"^Staged in [\w-]+: .+?\n(?=\n|Receipt)", _staged, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\d+\.\d s +", lambda found: "1.0 s".ljust(len(found[0])), text)
    for kind, pattern in (("run-", r"run-[0-9a-f]{32}"), ("session-", r"session-[0-9a-f-]{36}")):
        for number, name in enumerate(dict.fromkeys(re.findall(pattern, text)), 1):
            text = text.replace(name, kind + f"{number}".rjust(len(name) - len(kind), "0"))
    return text.strip("\n") + "\n"


def _staged(found: "re.Match[str]") -> str:
    """Objects with their sizes, which decide where the lines end."""
    line = re.sub(r"[\d,]+ bytes", "9 bytes", " ".join(found[0].split()))
    line = line.replace("checkpoint.zip (9 bytes), ", "")  # there only where the machine was quick enough
    return re.sub(r"^Staged in \S+", "Staged in ATTEMPT:", line) + "\n"


def kept(name: str) -> Path:
    """The file of a screen, such as `show-80`."""
    return SCREENS / f"{name}.txt"
