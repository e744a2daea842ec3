"""The benchmarks run, count what passes, reckon right, and say what they did not meet. No time is asserted."""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import report, requests, storage, trees
from benchmarks.cost import Prices, Usage, charged
from benchmarks.limiter import Exchange, Limiter
from benchmarks.report import Check, Section
from benchmarks.workflow import about_archive

PRICES = Prices("here", "today", 1.0, 10.0, 100.0, 50.0, 1000.0, 10_000.0, 5.0, 7.0, 300.0)


@pytest.fixture(scope="module")
def server() -> str:
    """What the S3 server is started as. Whoever only runs the tests need not have it; CI does."""
    if not (storage.SERVER.exists() or os.environ.get("CI")):
        pytest.skip("The benchmarks' S3 server is missing: make .venv/benchmarks")
    return str(storage.SERVER)


@pytest.fixture(scope="module")
def limiter(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limiter]:
    folder = tmp_path_factory.mktemp(Path(server).name)
    with storage.running(folder) as started, Limiter(started.address, mbit=4000, latency=0) as slow:
        yield slow


@pytest.fixture
def s3(limiter: Limiter) -> Any:
    return storage.client(limiter.url)


@pytest.mark.usefixtures("server")
def test_everything_runs_and_is_written(tmp_path: Path) -> None:
    """`make bench`, tiny: every benchmark has its tables, every request its reason, every plot is an image."""
    about, sections = bench.measure(list(bench.BENCHMARKS), quick=True, say=print)
    report.write(tmp_path, about, sections)
    page = (tmp_path / "benchmarks.md").read_text()
    for title in ("A POST and the bare SDK", "Many at once", "Persist", "Restore", "What AWS would charge"):
        assert f"\n## {title}\n" in page
    assert "Linux" in about
    assert "The benchmark" not in page  # so begins the line of one that failed
    assert re.search(r"\| Every S3 request of a turn has its reason \| \d+ requests, 0 without \| met \|", page)
    shown = re.findall(r"!\[.*\]\((.*\.svg)\)", page)
    assert len(shown) >= 6
    for name in shown:
        assert ET.parse(tmp_path / name).getroot().tag.endswith("svg")


def test_what_passes_is_counted(limiter: Limiter, s3: Any) -> None:
    """Bodies arrive as they were sent, whatever their framing, and their bytes are counted in both directions."""
    content, first = bytes(range(256)) * 4096, len(limiter.log)
    s3.put_object(Bucket=storage.BUCKET, Key="content", Body=content)
    assert s3.head_object(Bucket=storage.BUCKET, Key="content")["ContentLength"] == len(content)
    assert s3.get_object(Bucket=storage.BUCKET, Key="content")["Body"].read() == content
    s3.delete_object(Bucket=storage.BUCKET, Key="content")
    assert [(one.method, one.status, one.up, one.down) for one in limiter.log[first:]] == [
        ("PUT", 200, len(content), 0),
        ("HEAD", 200, 0, 0),
        ("GET", 200, 0, len(content)),
        ("DELETE", 204, 0, 0),
    ]


def test_the_server_honours_what_the_workflow_leans_on(s3: Any) -> None:
    """A second writer is refused, an old version stays readable: else the benchmark would measure another thing."""
    first = s3.put_object(Bucket=storage.BUCKET, Key="one", Body=b"old", IfNoneMatch="*")
    with pytest.raises(s3.exceptions.ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=storage.BUCKET, Key="one", Body=b"lost", IfNoneMatch="*")
    s3.put_object(Bucket=storage.BUCKET, Key="one", Body=b"new", IfMatch=first["ETag"])
    with pytest.raises(s3.exceptions.ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=storage.BUCKET, Key="one", Body=b"lost", IfMatch=first["ETag"])
    old = s3.get_object(Bucket=storage.BUCKET, Key="one", VersionId=first["VersionId"])
    assert old["Body"].read() == b"old"


def test_a_charge_is_the_sum_of_its_parts() -> None:
    """Known prices times known use: Lambda by memory, express in steps of 100 ms and 64 MB, storage by the month."""
    usage = Usage({"A": 2.0, "B": 1.04}, {"A": 1024, "B": 2048}, s3_writes=3, s3_reads=4, gb_kept=2.0)
    assert charged(usage, PRICES) == {
        "API Gateway": 1.0,
        "Step Functions": pytest.approx(10.0 + 3.1 * 0.064 * 100.0),
        "Lambda": pytest.approx(2 * 1000.0 + (2.0 + 2.08) * 10_000.0),
        "S3 requests": 3 * 5.0 + 4 * 7.0,
        "S3 storage of what it leaves": 600.0,
    }


def test_the_prices_are_complete_and_dated() -> None:
    """The table of prices has each that is asked for, with its region and date."""
    prices = Prices.read()
    assert re.fullmatch(r"\d{4}-\d\d", prices.date)
    assert prices.region
    assert prices.lambda_gb_second > 0


def test_a_tree_is_the_same_each_time(tmp_path: Path) -> None:
    """Two runs of the benchmarks measure the same files, and the same change of them."""
    made = [tmp_path / "a", tmp_path / "b"]
    for tree in made:
        trees.make(tree, trees.TINY)
    assert _content(made[0]) == _content(made[1])
    before = _content(made[0])
    assert [trees.change(tree, 0.25, 7) for tree in made] == [10, 10]
    assert _content(made[0]) == _content(made[1])
    assert len(before.items() ^ _content(made[0]).items()) >= 10


def _content(tree: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in tree.rglob("*") if path.is_file())
    return {str(path.relative_to(tree)): (path.stat().st_mode, path.read_bytes()) for path in files}


def test_what_is_not_met_is_said(tmp_path: Path) -> None:
    """A promise that the figures do not keep stands in the report as such."""
    section = Section("Any", checks=[Check.at_least("≥ 15×", 14.9, 15), Check.at_most("≤ 150 MB", 149.0, 150, " MB")])
    report.write(tmp_path, "A machine.", [section])
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| ≥ 15× | 14.9× | **not met** |" in page
    assert "| ≤ 150 MB | 149 MB | met |" in page


def test_a_request_that_nobody_has_explained_is_told() -> None:
    """A new request of the workflow shows in the report until someone says what it is for."""
    known = Exchange(0, 1, "PUT", "/sessions/locks/session-1.json", 200, 1, 0)
    fresh = Exchange(0, 1, "PUT", "/sessions/elsewhere/1", 200, 1, 0)
    section = requests.section("tiny", [known, fresh])
    assert section.checks[0].measured == "2 requests, 1 without"
    assert not section.checks[0].met


@pytest.mark.parametrize(
    ("target", "archive"),
    [("/b/session-1.zip?uploadId=1", True), ("/b/runs/r/a/changes.zip", True), ("/b/locks/session-1.json", False)],
)
def test_an_archive_is_told_from_the_record(target: str, archive: bool) -> None:
    """What is spent on a session's content, and what on the record that every run keeps, is shown apart."""
    assert about_archive(Exchange(0, 1, "PUT", target, 200, 0, 0)) is archive
