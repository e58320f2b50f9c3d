"""A worker with room for only a few deliveries: `python -m tests.cramped run`."""

from worker.broker import intake
from worker.cli import main

if __name__ == "__main__":
    intake.MOST_HELD_BYTES = 10_000
    main()
