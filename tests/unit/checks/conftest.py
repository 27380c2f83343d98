"""Makes the helpers of this directory importable by name."""
