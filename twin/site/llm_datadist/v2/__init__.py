"""The cache-manager mode: the only one this module has."""
