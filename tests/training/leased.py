"""Started by torchrun: leases a card for each process, says which, and holds it."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed.rendezvous import rendezvous

from rrm.distributed import leased_together

if __name__ == "__main__":
    folder, cards = Path(sys.argv[1]), json.loads(sys.argv[2])
    store, number, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    place = leased_together(store, cards, number, size, folder / "locks")
    (folder / f"process{number}.tmp").write_text(json.dumps([place, os.getpid()]))
    (folder / f"process{number}.tmp").rename(folder / f"process{number}.json")
    time.sleep(600)
