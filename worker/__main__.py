"""`python -m worker` is `projection-worker`."""

from worker.cli import main

if __name__ == "__main__":
    main()
