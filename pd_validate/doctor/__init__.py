"""`pd-validate doctor`: what this machine, the controller, lacks to run, and how to get it.

`machine.py` reads this machine, `needs.py` judges what was read (no I/O), `reach.py` logs in
to the hosts of a cluster file. Not here: anything about NPUs and engines; that is a run's.
"""

from pd_validate.doctor.examine import examine
from pd_validate.doctor.need import Need, State

__all__ = ["Need", "State", "examine"]
