"""Cores and memory that a process may use, with several ranks and under each limit."""
import os
import subprocess
import sys

import pytest

from common import machine

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MEMINFO = 'MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n'
AVAILABLE = 8000000 * 1024
V2 = '0::/user.slice/job\n'
V1 = '9:cpu:/\n4:memory:/docker/1f3a\n0::/init\n'


@pytest.mark.parametrize('own, all_cores, ranks_on_host, expected', [
    (192, 192, 1, 192),
    (192, 192, 8, 24),
    (24, 192, 8, 24),     # bound to its share: not divided once more
    (12, 192, 8, 12),
    (24, 192, 1, 24),
    (5, 5, 2, 2),
    (2, 2, 8, 1)])
def test_ranks_share_the_cores_of_their_host_out(monkeypatch, own, all_cores, ranks_on_host,
                                                 expected):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(own)))
    monkeypatch.setattr(os, 'cpu_count', lambda: all_cores)
    assert machine.cores_per_rank(ranks_on_host) == expected


def test_a_rank_that_is_bound_to_a_core_has_it():
    core = min(os.sched_getaffinity(0))
    printed = subprocess.run(
        ['taskset', '--cpu-list', str(core), sys.executable, '-c',
         'from common import machine; print([machine.cores_per_rank(n) for n in (1, 2, 8)])'],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert printed == '[1, 1, 1]\n'


@pytest.mark.parametrize('files, expected', [
    ({'proc/meminfo': MEMINFO}, AVAILABLE),
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2}, AVAILABLE),
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2,
      'sys/fs/cgroup/user.slice/job/memory.max': 'max\n'}, AVAILABLE),
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2,
      'sys/fs/cgroup/user.slice/job/memory.max': '9000000000000\n'}, AVAILABLE),
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2,
      'sys/fs/cgroup/user.slice/job/memory.max': '4000000000\n'}, 4000000000),
    # Memory in use counts, but not the page cache.
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2,
      'sys/fs/cgroup/user.slice/job/memory.max': '4000000000\n',
      'sys/fs/cgroup/user.slice/job/memory.stat':
          'anon 1000000000\nfile 2500000000\nshmem 500000000\n'}, 2500000000),
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V1,
      'sys/fs/cgroup/memory/memory.limit_in_bytes': '2000000000\n',
      'sys/fs/cgroup/memory/memory.stat':
          'cache 1\nrss 7\ntotal_cache 900000000\ntotal_rss 2100000000\n'}, 0),
    # A group above it has less.
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2,
      'sys/fs/cgroup/user.slice/memory.max': '3000000000\n',
      'sys/fs/cgroup/user.slice/job/memory.max': '4000000000\n'}, 3000000000),
    # The limit of another group.
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V2,
      'sys/fs/cgroup/system.slice/memory.max': '1\n'}, AVAILABLE),
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V1,
      'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n'}, AVAILABLE),
    # In a container, where the path is the host's.
    ({'proc/meminfo': MEMINFO, 'proc/self/cgroup': V1,
      'sys/fs/cgroup/memory/memory.limit_in_bytes': '2000000000\n'}, 2000000000),
    ({'proc/self/cgroup': V1,
      'sys/fs/cgroup/memory/docker/1f3a/memory.limit_in_bytes': '2000000000\n'}, 2000000000),
    ({}, None)])
def test_free_memory_is_the_smallest_of_all_limits(tmp_path, files, expected):
    for path, text in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert machine.free_memory_bytes(str(tmp_path)) == expected


def test_idle_time_is_that_of_the_cores_of_this_process(tmp_path):
    core = min(os.sched_getaffinity(0))
    (tmp_path / 'proc').mkdir()
    (tmp_path / 'proc' / 'stat').write_text(
        'cpu  9 9 9 9999 9 9 9 9 9 9\n'
        f'cpu{core} 100 0 50 300 20 0 1 2 0 0\ncpu4095 0 0 0 7777 0 0 0 0 0 0\nintr 1 2 3 4 5 6\n')
    assert machine.idle_secs(str(tmp_path)) == 320 / os.sysconf('SC_CLK_TCK')


def test_this_machine_has_free_memory():
    assert 0 < machine.free_memory_bytes() < 2 ** 60
