"""Numbers of things, as sentences have them."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 message, 2,000 messages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
