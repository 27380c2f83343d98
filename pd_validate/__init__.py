"""Validation harness for prefill/decode-disaggregated vLLM on Ascend.

spec (what should be) -> hosts (how to reach it) -> facts (what is) -> checks
(what is wrong) -> findings -> report. Arrows go one way; see docs/architecture.md.
"""

__version__ = "0.1.0"
