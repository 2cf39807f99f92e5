"""What a process may use of the machine that it runs on: cores and memory."""
import os

_MEMINFO = 'proc/meminfo'
_STAT = 'proc/stat'
_GROUPS = 'proc/self/cgroup'
# Of cgroup v2 and v1: the folder of the groups, and the file of a group's limit.
_V2_LIMIT = 'sys/fs/cgroup', 'memory.max'
_V1_LIMIT = 'sys/fs/cgroup/memory', 'memory.limit_in_bytes'


def cores_per_rank(ranks_on_host):
    """Returns how many cores a rank has for itself, at least 1.

    Args:
        ranks_on_host: int, ranks that share this machine.
    """
    # A rank that is bound to cores (--bind_core, taskset) has got its share already.
    return min(len(os.sched_getaffinity(0)), max(1, os.cpu_count() // ranks_on_host))


def idle_secs(root='/'):
    """Returns for how long the cores that this process may use have been idle, added up.

    Since the machine was started; of all that runs on it.
    """
    own = {f'cpu{core}' for core in os.sched_getaffinity(0)}
    cores = [line.split() for line in _lines(os.path.join(root, _STAT))]
    # Columns of proc(5): 4 is idle, 5 is idle while a disk is waited for.
    ticks = sum(int(core[4]) + int(core[5]) for core in cores if core[0] in own)
    return ticks / os.sysconf('SC_CLK_TCK')


def free_memory_bytes(root='/'):
    """Returns how much memory programs may still take, in bytes; None if nothing says so.

    The smaller one of what the kernel calls available and of the limit of the process's cgroup.

    Args:
        root: str, the folder that has proc and sys.
    """
    return min([*_available(root), *_limits(root)], default=None)


def _available(root):
    return [int(line.split()[1]) * 1024 for line in _lines(os.path.join(root, _MEMINFO))
            if line.startswith('MemAvailable:')]


def _limits(root):
    """Yields the memory limits of the groups that this process is in, in bytes."""
    for line in _lines(os.path.join(root, _GROUPS)):
        # Such as 0::/user.slice in v2, and 9:memory:/docker/1f3a in v1.
        _, controllers, group = line.rstrip('\n').split(':', 2)
        if controllers in ('', 'memory'):
            folder, name = _V1_LIMIT if controllers else _V2_LIMIT
            # Each group limits those below it. In a container the path may be the host's, and the
            # container's own group the topmost one that is mounted.
            for path in _upwards(group):
                for limit in _lines(os.path.join(root, folder, path, name)):
                    if limit.strip().isdigit():    # "max" is none
                        yield int(limit)


def _upwards(group):
    """Returns the paths of a group and of all above it, without the first slash."""
    parts = group.strip('/').split('/')
    return ['/'.join(parts[:length]) for length in range(len(parts), -1, -1)]


def _lines(path):
    """Returns the lines of a file; none if it cannot be read."""
    try:
        with open(path) as file:
            return file.readlines()
    except OSError:
        return []
