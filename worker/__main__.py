"""The program: `projection-worker`, or `python -m worker`."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    # A signal that comes during the imports of `run` waits until process.py can act on it. Process
    # 1 of a container would never get it: the kernel drops a signal that has no handler
    # (pid_namespaces(7)). The image lets signals wait from even earlier on, for any command.
    how = signal.SIG_BLOCK if sys.argv[1:2] == ["run"] else signal.SIG_UNBLOCK
    try:
        signal.pthread_sigmask(how, (signal.SIGTERM, signal.SIGINT))
        from worker import cli  # noqa: PLC0415 - only now, as it takes time

        cli.main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
