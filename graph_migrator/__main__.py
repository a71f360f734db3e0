"""The command `graph-migrator`, also as ``python -m graph_migrator``."""

import signal


def run() -> None:
    """Run the command line. Ctrl-C while modules are still being loaded ends the process, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a command that was loaded takes it back

    from graph_migrator.tasks.cli import main

    main()


if __name__ == "__main__":
    run()
