"""``mvad tune`` for ``ray job submit``: the same arguments, options and exit codes."""

from entry_point import run_command

if __name__ == "__main__":
    run_command(__file__)
