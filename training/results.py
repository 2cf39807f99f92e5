"""The former name of run_log.event_log: `training.results.read` keeps working."""
from run_log.event_log import EVENTS  # noqa: F401
from run_log.event_log import append  # noqa: F401
from run_log.event_log import read  # noqa: F401
