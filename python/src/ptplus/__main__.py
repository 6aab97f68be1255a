"""`python -m ptplus ...` is `ptplus ...`."""

import os
import subprocess
import sys

from ptplus._program import find_program


def main() -> int:
    program = find_program()
    if os.name == "posix":
        os.execv(program, [program, *sys.argv[1:]])
    return subprocess.run([program, *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
