"""What a twin's host has instead of Ascend tools: hccn_tool, npu-smi, docker. Standard library
only, and little of that: each is started hundreds of times in one validation.
"""
