"""The inside of the test double. Nothing here exists in the real npu_bridge.

Start with `releases`, the tables of what each release has; `device` stands for the compiled half.
"""
