"""What the environment says about the job (docs/npu_bridge.md section 4)."""
import os as _os

from npu_bridge.double import releases as _releases


class NPUBasics:
    """The job, read once per process."""

    _rank_size = None

    def __init__(self, job_start_file=''):
        del job_start_file
        if NPUBasics._rank_size is None:
            NPUBasics._rank_size = self._read_rank_size()

    @property
    def rank_size(self):
        """RANK_SIZE as text."""
        return NPUBasics._rank_size

    @staticmethod
    def _read_rank_size():
        rank_size = _os.environ.get('RANK_SIZE')
        if _releases.since('r1.11.0') and rank_size and _os.environ.get('CM_WORKER_SIZE'):
            raise ValueError('RANK_SIZE and CM_WORKER_SIZE are both set')
        if _releases.since('r1.11.0'):
            rank_size = rank_size or _os.environ.get('CM_WORKER_SIZE')
        if rank_size:
            return rank_size
        # dev hands on the number 1, whose missing isdigit is the error that follows.
        return '1' if _releases.since('r1.3.0') else 1
