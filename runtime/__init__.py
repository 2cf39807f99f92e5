"""The runtime of a run: an NPU or stock TensorFlow. Callers never ask which one they have.

Importing this package imports neither TensorFlow nor absl, which the launcher does without.
"""


def select(config):
    """Returns the runtime that --accelerator asks for.

    Args:
      config: the run's `Config`.

    Returns:
      an `NPURuntime` or a `StockRuntime`.

    Raises:
      UserError: see `load_bridge`, or the runtime refuses a flag.
    """
    from runtime import npu
    from runtime import stock
    bridge = load_bridge(config.runtime.accelerator)
    return npu.NPURuntime(config, bridge) if bridge else stock.StockRuntime(config)


def load_bridge(accelerator):
    """Returns the namespace of `npu.load_bridge`; None where stock TensorFlow is to run.

    Args:
      accelerator: value of --accelerator.

    Raises:
      UserError: npu_bridge is broken, or missing where --accelerator=npu or the environment asks
        for it; or the environment describes a job of several ranks incompletely.
    """
    from runtime import cluster
    from runtime import npu
    from runtime import npu_env
    if accelerator in ('stock', 'host'):
        return None
    if accelerator == 'auto' and not npu.is_installed():
        npu_env.check_unused(cluster.world_size())
        return None
    return npu.load_bridge()
