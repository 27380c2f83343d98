"""What is: readers of hosts and NPUs. One script and one round trip per host, no judgement.

`reading.py` what a reading is · `hccn.py`, `npu_smi.py`, `hccn_conf.py` pure parsers of
the vendor's tools · `collector.py` the script that runs on a host · `hosts.py` typed
facts of hosts, read in parallel · `pings.py` the ping matrix.
"""
