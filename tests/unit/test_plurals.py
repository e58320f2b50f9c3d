import pytest

from worker.plurals import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (2_000, "2,000 rows")]
)
def test_a_noun_agrees_with_its_number(number: int, said: str) -> None:
    """One thing is singular, every other number plural."""
    assert counted(number, "row") == said
