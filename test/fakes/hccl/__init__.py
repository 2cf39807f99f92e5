"""Test double of the `hccl` package that npu_bridge imports (docs/npu_bridge.md section 1)."""
