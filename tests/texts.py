"""The small text that the tests train on."""

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "home"]


def small_text() -> str:
    """Return some thousand characters in lines of eight words."""
    drawn, chosen = 1, []
    for _ in range(960):
        drawn = drawn * 1_103_515_245 % 2**31 + 12_345
        chosen.append(WORDS[(drawn >> 8) % len(WORDS)])
    lines = [" ".join(chosen[i : i + 8]) for i in range(0, len(chosen), 8)]
    return "\n".join(lines) + "\n"
