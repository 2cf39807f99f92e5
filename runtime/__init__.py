"""What a run runs on. Nothing above this package asks which runtime it has."""
from runtime import host


def select(config):
    """The runtime for a `Config`."""
    return host.HostRuntime(config)
