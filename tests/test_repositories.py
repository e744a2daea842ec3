"""Which repositories a run may use, by their addresses."""

import pytest

from lambdas.repositories import Repositories, is_address

ACME = Repositories("github.com", ("acme/*", "umbrella/site", "deep/*/x-*"), push=True, secret="GIT_TOKEN")


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme/site",
        "https://github.com/acme/site.git",
        "https://github.com/acme/.github",
        "https://github.com/umbrella/site.git",
        "https://github.com/deep/er/x-1",
    ],
)
def test_a_repository_is_one_of_them(url: str) -> None:
    """By any of the patterns, with or without `.git`."""
    assert ACME.has(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme",
        "https://github.com/acme/",
        "https://github.com/acme/site/",
        "https://github.com/acme/site/tree",
        "https://github.com/acme/../other/site",
        "https://github.com/acme/..",
        "https://github.com/acme//site",
        "https://github.com/acme/%2e%2e",
        "https://github.com/umbrella/site2",
        "https://github.com/Umbrella/site",
        "https://github.com/deep/x/y/x-1",
        "https://github.com/other/site",
        "https://github.com/acme/site?x",
        "https://github.com/acme/site#x",
        "https://me@github.com/acme/site",
        "https://github.com:443/acme/site",
        "https://github.com.evil.example/acme/site",
        "https://evil.example/https://github.com/acme/site",
        "http://github.com/acme/site",
        "git@github.com:acme/site",
        "ssh://git@github.com/acme/site",
        "file:///acme/site",
        "https://github.com/acme/site\n",
        "https://github.com/acme/sité",
    ],
)
def test_what_only_looks_like_one_is_none(url: str) -> None:
    """Another host, another scheme, another path, or one that could be read in two ways."""
    assert not ACME.has(url)


def test_only_this_machine_is_spoken_to_without_tls() -> None:
    """A token goes over no network in the open."""
    assert is_address("http://127.0.0.1:8080/acme/site")
    assert not is_address("http://git.example/acme/site")
    assert not is_address("https://127.0.0.1:8080/acme/site")
