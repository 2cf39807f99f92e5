"""docs/npu_bridge.md section 1 names this module. Its contents are not modelled."""
