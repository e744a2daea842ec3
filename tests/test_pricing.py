"""What calls of the model cost, by the table and by a deployment's own prices."""

from typing import Any

import pytest

from lambdas.pricing import Asked, Prices, Unpriced, kept

OPUS = "claude-opus-5-5"
EU_SONNET = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
OWN = {"input": 1, "output": 2, "write_5m": 3, "write_1h": 4, "read": 5}


def usd(model: str, usage: dict[str, Any], prices: Prices | None = None, **asked: bool) -> float:
    return (prices or Prices.of()).usd(Asked(model, **asked), kept(usage))


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        (OPUS, {"input_tokens": 1_000_000}, 4),
        (OPUS, {"output_tokens": 1_000_000}, 20),
        (OPUS, {"cache_creation_input_tokens": 1_000_000}, 5),
        (OPUS, {"cache_creation_input_tokens": 10**6, "cache_creation": {"ephemeral_1h_input_tokens": 10**6}}, 8),
        (OPUS, {"cache_read_input_tokens": 1_000_000}, 0.2),
        (OPUS, {"server_tool_use": {"web_search_requests": 3}}, 0.03),
        (OPUS, {"output_tokens": 1_000_000, "speed": "fast"}, 40),
        ("claude-opus-4-6", {"output_tokens": 1_000_000, "speed": "fast"}, 150),
        (OPUS, {"output_tokens": 1_000_000, "inference_geo": "us"}, 22),
        (OPUS, {"output_tokens": 10, "iterations": [{"output_tokens": 500_000}, {"output_tokens": 500_000}]}, 20),
        ("claude-haiku-5-5", {"input_tokens": 100_000}, 0.01),
        ("claude-haiku-5-5", {"input_tokens": 100_001}, 0.0500005),
        ("claude-opus-4-5-20251101", {"output_tokens": 1_000_000}, 25),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", {"output_tokens": 1_000_000}, 15),
        (EU_SONNET, {"output_tokens": 1_000_000}, 16.5),
        ("anthropic.claude-opus-4-1-20250805-v1:0", {"output_tokens": 1_000_000}, 75),
        (OPUS, {"input_tokens": "many", "output_tokens": -5, "cache_creation": [], "iterations": 7}, 0),
    ],
)
def test_what_an_answer_costs(model: str, usage: dict[str, Any], dollars: float) -> None:
    """To the microdollar."""
    assert usd(model, usage) == pytest.approx(dollars, abs=1e-9)


@pytest.mark.parametrize("model", ["claude-unheard-of", "gpt-4", "", "claude-opus-5-5 "])
def test_what_has_no_price_costs_nothing_that_could_be_named(model: str) -> None:
    """It is not reckoned at another's."""
    assert not Prices.of().knows(model)
    with pytest.raises(Unpriced):
        usd(model, {"output_tokens": 1})


def test_a_deployments_own_prices_come_first() -> None:
    """By the exact id, or by the table's; `*` is for what neither has. The version says so."""
    own = Prices.of({OPUS: OWN, EU_SONNET: OWN | {"regional": 1}, "*": OWN | {"output": 100}})
    assert usd(OPUS, {"output_tokens": 10**6}, own) == 2
    assert usd(EU_SONNET, {"output_tokens": 10**6}, own) == 2
    assert usd("gpt-4", {"output_tokens": 10**6}, own) == 100
    assert usd("claude-sonnet-5", {"output_tokens": 10**6}, own) == 10
    assert own.version != Prices.of().version


@pytest.mark.parametrize(
    "line",
    [
        {},
        OWN | {"output": -1},
        OWN | {"output": True},
        OWN | {"more": 1},
        [],
        OWN | {"long": {"above": "x"} | OWN},
        OWN | {"long": {"above": 1}},
        OWN | {"regional": "much"},
        OWN | {"fast": None},
        OWN | {"long": 0},
    ],
)
def test_what_is_no_price_is_refused_by_the_models_name(line: Any) -> None:
    """Where the deployment is read, not where money is spent."""
    with pytest.raises(ValueError, match="claude-x"):
        Prices.of({"claude-x": line})


def test_a_receipts_lines_reckon_as_the_table_did() -> None:
    """So what was paid can be shown when the table has changed."""
    lines = Prices.of().lines([EU_SONNET, OPUS])
    assert lines["models"].keys() == {"claude-sonnet-4-5", OPUS}
    assert usd(EU_SONNET, {"output_tokens": 10**6}, Prices(lines)) == 16.5
