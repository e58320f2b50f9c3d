from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from worker.store.failures import Author
from worker.store.statements import Statements

TEXTS = ("INSERT", "UPDATE", "DELETE")
statements = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(TEXTS)), max_size=40)


class TestStatements:
    @given(statements)
    def test_keep_the_order_of_every_stream(self, given: list[tuple[str, str]]) -> None:
        """For any statements of the streams, none is lost or runs twice."""
        groups = Statements()
        for number, (stream, sql) in enumerate(given):
            groups.author = Author(stream)
            groups.add_for_handler(sql, [number])

        found: dict[str, list[str]] = defaultdict(list)
        numbers = []
        for sql, rows, authors in groups.take():
            for (told,), author in zip(rows or (), authors, strict=True):
                number = int(str(told))
                assert author[0] == given[number][0]
                numbers.append(number)
                found[given[number][0]].append(f"{number}: {sql}")

        assert sorted(numbers) == list(range(len(given)))
        for stream, said in found.items():
            assert said == [
                f"{number}: {sql}" for number, (each, sql) in enumerate(given) if each == stream
            ]

    def test_are_as_few_as_the_longest_stream_needs(self) -> None:
        """Streams with the same statements share groups, however many streams there are."""
        groups = Statements()
        for stream in range(100):
            groups.author = Author(str(stream))
            for sql in ("INSERT", "UPDATE", "UPDATE", "DELETE", "UPDATE"):
                groups.add_for_handler(sql, ())

        assert [each.sql for each in groups.take()] == ["INSERT", "UPDATE", "DELETE", "UPDATE"]
