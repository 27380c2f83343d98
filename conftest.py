"""Nothing lives here on purpose: options, fixtures and hooks are the plugin's (pd_validate/plugin.py),

so that `pytest --cluster cluster.yaml` works from any directory.
"""
