from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from worker.store.statements import Groups

TEXTS = ("INSERT", "UPDATE", "DELETE")
statements = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(TEXTS)), max_size=40)


class TestGroups:
    @given(statements)
    def test_keep_the_order_of_every_stream(self, given: list[tuple[str, str]]) -> None:
        """Whatever the streams say, and nothing is lost or said twice."""
        groups = Groups()
        for number, (stream, sql) in enumerate(given):
            groups.add(stream, sql, [number])

        found: dict[str, list[str]] = defaultdict(list)
        numbers = []
        for sql, rows in groups.take():
            for (told,) in rows:
                number = int(str(told))
                numbers.append(number)
                found[given[number][0]].append(f"{number}: {sql}")

        assert sorted(numbers) == list(range(len(given)))
        for stream, said in found.items():
            assert said == [
                f"{number}: {sql}" for number, (each, sql) in enumerate(given) if each == stream
            ]

    def test_are_as_few_as_the_longest_stream_needs(self) -> None:
        """Streams that say the same share their groups, however many they are."""
        groups = Groups()
        for stream in range(100):
            for sql in ("INSERT", "UPDATE", "UPDATE", "DELETE", "UPDATE"):
                groups.add(str(stream), sql, ())

        assert [sql for sql, _ in groups.take()] == ["INSERT", "UPDATE", "DELETE", "UPDATE"]
