"""`python -m pygen`, which is how `torchrun` starts it: torchrun --nproc-per-node 2 -m pygen ..."""

import os
import sys

from torch import distributed

from .cli import main

try:
    main(prog_name="pygen")
except SystemExit as end:
    if distributed.is_torchelastic_launched():
        # At the interpreter's end a thread of gloo's now and then aborts the process: leave without that end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    raise
