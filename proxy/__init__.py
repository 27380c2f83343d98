"""The PD load-balancing proxy: one address in front of prefillers and decoders.

Each request is first given to a prefiller (one token, to fill the KV cache) and then,
with the `kv_transfer_params` of its answer, to a decoder whose answer is relayed.
Runs alone on a host: imports nothing of the harness. How it behaves: docs/proxy.md.
"""
