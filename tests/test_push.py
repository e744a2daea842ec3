"""What a push would change, as it is read before it is passed on."""

import pytest

from lambdas.agent.approvals import Approvals, Verdict, digest
from lambdas.agent.messages import Unreadable
from lambdas.agent.push import UNAPPROVED, commands, wrong
from lambdas.agent.upstream import Reply, Sent

OLD, NEW = "1" * 40, "2" * 40


def packets(*lines: str | bytes, pack: bytes = b"PACK...") -> bytes:
    """The beginning of a push, and what follows."""
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    return b"".join(b"%04x%b" % (len(line) + 4, line) for line in encoded) + b"0000" + pack


def sent(body: bytes, *, cut: bool = False, **headers: str) -> Sent:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Sent("POST", "/acme/site/git-receive-pack", named, body, cut)


def test_every_name_is_read() -> None:
    """Of what is made, changed and taken away; what the sender can do stands behind the first."""
    body = packets(
        f"shallow {OLD}",
        f"{OLD} {NEW} refs/heads/a\0 report-status side-band-64k agent=git/2.39",
        f"{OLD} {'0' * 40} refs/heads/bé\n",
        f"{'0' * 64} {'3' * 64} refs/tags/v1",
    )
    refs, capabilities = commands(body)
    assert refs == ["refs/heads/a", "refs/heads/bé".encode().decode("latin-1"), "refs/tags/v1"]
    assert {"report-status", "side-band-64k"} <= capabilities
    assert commands(b"0000") == ([], frozenset())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PACK",
        b"0000PACK",
        b"0001",
        b"00zz",
        b"+0f0",
        b"ffff",
        packets(f"{OLD} {NEW} refs/heads/a\0x")[:-11],
        packets("push-cert\0report-status", "certificate version 0.1"),
        packets(f"{OLD} {NEW} refs/heads/a\0x", f"{OLD} {NEW} refs/heads/b\0y"),
        packets(f"{OLD}  {NEW} refs/heads/a\0x"),
        packets(f"{OLD} {NEW}"),
        packets(f"{OLD} {NEW} refs/heads/a b\0x"),
        packets(f"{OLD} {NEW} refs/heads/../heads/main\0x"),
        packets(f"{OLD} {NEW} refs//heads/main\0x"),
        packets(f"{OLD} {NEW} refs/heads/a\r\n\0x"),
        packets(f"{OLD[:-1]} {NEW} refs/heads/a\0x"),
        packets(f"{OLD} {NEW} refs/heads/a\0x", *(f"{OLD} {NEW} refs/heads/{each}" for each in range(1000))),
    ],
)
def test_what_could_be_read_otherwise_is_not_read(body: bytes) -> None:
    """Lengths that are none, what is signed, what is said twice, names that lead elsewhere, and no end."""
    with pytest.raises(Unreadable):
        commands(body)
    assert "not a push that can be read" in str(wrong(sent(body), []))


@pytest.mark.parametrize(
    ("ref", "allowed"),
    [
        ("refs/heads/work", True),
        ("refs/heads/maintenance", True),
        ("refs/tags/main", True),
        ("refs/heads/main", False),
        ("refs/heads/Main", False),
        ("refs/heads/release/1/2", False),
        ("refs/for/work", False),
        ("refs/notes/commits", False),
        ("HEAD", False),
        ("main", False),
    ],
)
def test_a_push_is_let_through_by_its_names(ref: str, allowed: bool) -> None:
    """Branches that are not protected, and tags."""
    body = packets(f"{OLD} {NEW} refs/heads/fine\0report-status", f"{OLD} {NEW} {ref}")
    said = wrong(sent(body), ["main", "release/*"])
    assert (said is None) == allowed
    if isinstance(said, Reply):
        assert said.body.count(b"ng ") == 2


def test_options_an_encoding_and_too_much_are_refused() -> None:
    """GitLab's options open and merge merge requests; what is encoded could not be read."""
    line = f"{OLD} {NEW} refs/heads/work\0report-status side-band-64k"
    for request in (
        sent(packets(f"{line} push-options")),
        sent(packets(line), content_encoding="gzip"),
        sent(packets(line), cut=True),
    ):
        assert wrong(request, [])
    assert wrong(sent(packets(line)), []) is None


def test_who_takes_no_report_gets_a_refusal() -> None:
    """In words."""
    said = wrong(sent(packets(f"{OLD} {NEW} refs/heads/main\0")), ["main"])
    assert isinstance(said, str)
    assert said.startswith("main is protected")


def test_a_push_waits_for_an_approval_of_its_own() -> None:
    """One for each approved call of `git push`; what is refused for another reason uses none up, nor does a probe."""
    given = {"command": "git -C site push origin a"}
    asked = Approvals(["git push"], Verdict(digest("toolu_1", "Bash", given), approved=True), lambda: True)
    body = sent(packets(f"{OLD} {NEW} refs/heads/a\0x"))
    assert wrong(body, [], asked.spend_push) == UNAPPROVED
    assert asked._judge("Bash", given, "toolu_1")[0] == "allow"
    assert "protected" in str(wrong(body, ["a"], asked.spend_push))
    assert wrong(sent(b"0000"), [], asked.spend_push) is None
    assert wrong(body, [], asked.spend_push) is None
    assert wrong(body, [], asked.spend_push) == UNAPPROVED
    assert wrong(body, [], Approvals(["mcp__tracker__*"]).spend_push) is None
