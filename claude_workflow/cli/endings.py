"""How a run ended, in words: for a line, and for a screen."""

from typing import Any

STANDING = {
    "running": "An execution is at work on it.",
    "cancelled": "Its caller ended it before the model had answered.",
    "lost": "Neither an answer nor a failure was written, and nobody is at work on it any more.",
}
"""What is said of a run without an answer that has not failed either, by its outcome."""


def dollars(amount: float | None) -> str:
    """A cost, or a dash where nobody knows it."""
    return "–" if amount is None else f"${amount:.4f}"


def lasted(seconds: float) -> str:
    """A time that something took, in seven characters up to four days: `1.6 s`, `12m 05s`, `3h 05m`."""
    minutes, hours = divmod(int(seconds), 60), divmod(int(seconds) // 60, 60)
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{minutes[0]}m {minutes[1]:02}s" if hours[0] < 1 else f"{hours[0]}h {hours[1]:02}m"


def is_cancelled(ended: dict[str, Any]) -> bool:
    """Whether a run's caller ended it, before the model had answered (a failure) or later (an answer)."""
    return ended.get("stop_reason") == "cancelled" or ended.get("code") == "RunCancelled"


def is_cut_short(answer: dict[str, Any]) -> bool:
    """Whether a completed run stopped at a limit, or its model's provider failed meanwhile."""
    return answer.get("stop_reason") != "end_turn" or bool(answer.get("model_failure"))


def cut_short(answer: dict[str, Any]) -> str:
    """Which limit that was, or what failed: `deadline`, `model failed (529 ×7)`; empty for an ordinary end."""
    if failed := answer.get("model_failure"):
        return f"model failed ({failed['status'] or 'no connection'} ×{failed['times']})"
    stopped = str(answer.get("stop_reason") or "")
    return "" if stopped == "end_turn" else stopped


def provider_failed(answer: dict[str, Any]) -> str | None:
    """The sentence for a completed run during which the provider failed."""
    failed = answer.get("model_failure")
    if not failed:
        return None
    times = "once" if failed["times"] == 1 else f"{failed['times']} times"
    how = failed["status"] or "no connection"
    return f"The model's provider failed {times} during this run ({how}). What was done until then is saved."
