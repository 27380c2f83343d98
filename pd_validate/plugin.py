"""pytest options, fixtures and hooks. Thin: what they do lives in topology/, checks/ and report/."""

from __future__ import annotations
