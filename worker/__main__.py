"""The program: `projection-worker`, or `python -m worker`."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    # A signal that arrives during the imports of `run` waits until process.py can handle it. In a
    # container, process 1 would otherwise never receive it, because the kernel drops its signals
    # that have no handler (pid_namespaces(7)). The image blocks signals even earlier, for every
    # command.
    how = signal.SIG_BLOCK if sys.argv[1:2] == ["run"] else signal.SIG_UNBLOCK
    try:
        signal.pthread_sigmask(how, (signal.SIGTERM, signal.SIGINT))
        from worker import cli  # noqa: PLC0415 - slow, so only once signals wait

        cli.main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
