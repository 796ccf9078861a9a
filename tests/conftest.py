"""Settings of every test: one thread, as the machines that run several at a time have cores; Triton without a GPU."""

import os
import signal

from ablate.spec.machine import has_gpu

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not has_gpu():
    # Before any kernel is defined: without a device kernels run in Triton's interpreter.
    os.environ["TRITON_INTERPRET"] = "1"
# Under nohup, and in the background of a shell, these are ignored; tests that send them would wait for ever.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
