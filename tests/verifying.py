"""A worker that verifies the topology all the time: `python -m tests.verifying run`."""

from worker import service
from worker.cli import main

if __name__ == "__main__":
    service.VERIFY_SECONDS = 0
    # How long a silent broker is waited for; a test may wait for the end of that.
    service.OPEN_SECONDS = 2
    main()
