"""Empty on purpose: options, fixtures and hooks are the plugin's (pd_validate/plugin.py).

That way `pytest --cluster cluster.yaml` works from any directory.
"""
