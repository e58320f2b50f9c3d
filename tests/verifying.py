"""A worker that verifies the topology continuously: `python -m tests.verifying run`."""

from worker import service
from worker.cli import main

if __name__ == "__main__":
    service.VERIFY_EVERY_SECONDS = 0
    # How long it waits for a silent broker; short enough for a test to wait for it.
    service.OPEN_SECONDS = service.VERIFICATION_SECONDS = 2
    main()
