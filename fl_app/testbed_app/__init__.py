"""The Flower app that fltestbed runs: image classification, with figures of every client and round."""

import os

# Before torch is imported: threads that spin while they wait use up the CPU quota, and made training 40 times slower
# where two clients shared two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
