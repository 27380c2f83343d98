"""What is native code in CANN: the engine below the Python classes, here over TCP.

engine      the calls, each with CANN's order of checks; nothing here knows Python-level types
links       who is linked with whom: collective `link`, one-sided `link_clusters`
transfer    what a pull or push moves: merged runs of blocks, limits, waiting
server      the owner's side: background threads that serve memory to linked peers
wire        frames, and bytes between sockets and raw memory without copies of our own
caches      registered caches and the table of them that a peer reads
fabric      the twin's fabric state: what the NPUs' links carry
faults      a scenario's faults in the transferred KV
place       which instance, host and device this process is; where the others are
"""
