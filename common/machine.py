"""CPU cores and memory that this process may use."""
import os

_MEMINFO = 'proc/meminfo'
_STAT = 'proc/stat'
_GROUPS = 'proc/self/cgroup'
_GROUP_STAT = 'memory.stat'
# cgroup v2 and v1: root directory of the groups, file with the memory limit of a group, and entries
# of memory.stat that the kernel cannot reclaim. It reclaims the page cache.
_V2 = 'sys/fs/cgroup', 'memory.max', ('anon', 'shmem')
_V1 = 'sys/fs/cgroup/memory', 'memory.limit_in_bytes', ('total_rss', 'total_shmem')


def cores_per_rank(ranks_on_host):
    """Returns the number of CPU cores available to each rank, at least 1.

    Args:
        ranks_on_host: int, number of ranks on this machine.
    """
    # The affinity of a rank bound to cores (--bind_core, taskset) is already its share.
    return min(len(os.sched_getaffinity(0)), max(1, os.cpu_count() // ranks_on_host))


def idle_secs(root='/'):
    """Returns the idle time of the cores that this process may use, summed since boot, in seconds.

    A core is idle while no process of the machine runs on it.

    Args:
        root: str, directory that contains proc/.
    """
    own = {f'cpu{core}' for core in os.sched_getaffinity(0)}
    cores = [line.split() for line in _lines(os.path.join(root, _STAT))]
    # Columns of proc(5): 4 is idle, 5 is idle while waiting for I/O.
    ticks = sum(int(core[4]) + int(core[5]) for core in cores if core[0] in own)
    return ticks / os.sysconf('SC_CLK_TCK')


def free_memory_bytes(root='/'):
    """Returns the memory that programs may still allocate, in bytes, or None if it is unknown.

    The result is the smaller of the kernel's MemAvailable and what the memory limits of the
    process's control groups leave.

    Args:
        root: str, directory that contains proc/ and sys/.
    """
    return min([*_available(root), *_left_by_limits(root)], default=None)


def _available(root):
    return [int(line.split()[1]) * 1024 for line in _lines(os.path.join(root, _MEMINFO))
            if line.startswith('MemAvailable:')]


def _left_by_limits(root):
    """Yields what each memory limit of this process's control groups leaves, in bytes."""
    for line in _lines(os.path.join(root, _GROUPS)):
        # A line is 0::/user.slice in v2, and 9:memory:/docker/1f3a in v1.
        _, controllers, group = line.rstrip('\n').split(':', 2)
        if controllers in ('', 'memory'):
            folder, name, used_names = _V1 if controllers else _V2
            # A group's limit applies to all groups below it. In a container, the path may be that
            # of the host; the container's own group is then mounted as the root.
            for path in _upwards(group):
                group_dir = os.path.join(root, folder, path)
                entries = map(str.split, _lines(os.path.join(group_dir, _GROUP_STAT)))
                used = sum(int(value) for entry, value in entries if entry in used_names)
                for limit in _lines(os.path.join(group_dir, name)):
                    if limit.strip().isdigit():    # "max" means no limit
                        yield max(0, int(limit) - used)


def _upwards(group):
    """Returns the paths of a group and all of its parents, without the leading slash."""
    parts = group.strip('/').split('/')
    return ['/'.join(parts[:length]) for length in range(len(parts), -1, -1)]


def _lines(path):
    """Returns the lines of a file, or an empty list if it cannot be read."""
    try:
        with open(path) as file:
            return file.readlines()
    except OSError:
        return []
