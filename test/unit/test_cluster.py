"""TF_CONFIG: an address at which this worker cannot listen is one sentence, and soon."""
import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from common.errors import UserError
from runtime import cluster
from runtime import placement

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def describe(monkeypatch, workers, index=0):
    monkeypatch.setenv('TF_CONFIG', json.dumps(
        {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index}}))


@pytest.mark.parametrize('workers, words', [
    (['127.0.0.1:23451', '127.0.0.1:23451'], 'workers 0 and 1 have the same address'),
    (['127.0.0.1:23451', 'localhost:23451'], 'workers 0 and 1 have the same address'),
    (['198.51.100.1:23451', '127.0.0.1:23451'], 'belongs to another machine'),
    (['0.0.0.0:23451', '127.0.0.1:23451'], 'not one that others can reach'),
    (['127.0.0.1:23451', 'no-such-host.invalid:23451'], "'no-such-host.invalid' of worker 1"),
    (['127.0.0.1:23451', 'a\0b:23451'], 'character that no file name can have'),
    (['127.0.0.1:23451', '\ud800:23451'], 'character that no file name can have')])
def test_an_address_that_cannot_be_meant_is_refused(monkeypatch, workers, words):
    describe(monkeypatch, workers)
    with pytest.raises(UserError, match=words) as refusal:
        cluster.Cluster()
    assert str(refusal.value).startswith('TF_CONFIG')


@pytest.mark.parametrize('address', ['127.0.0.1', ''])
def test_a_port_in_use_is_refused(monkeypatch, address):
    with socket.socket() as listener:
        # As TensorFlow's own server, beside which another one could listen unnoticed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        describe(monkeypatch, ['127.0.0.1:1', f'127.0.0.1:{port}'], index=1)
        with pytest.raises(UserError, match=f'port {port} .*in use'):
            cluster.Cluster()


def test_workers_of_this_machine_are_counted():
    """In a process of its own, because the strategy starts a server."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        first, second = (each.getsockname()[1] for each in sockets)
    workers = [f'198.51.100.1:{first}', f'127.0.0.1:{first}', f'localhost:{second}']
    printed = subprocess.run(
        [sys.executable, '-c',
         'from runtime import cluster; print(cluster.Cluster().ranks_on_host)'],
        env={**os.environ, 'TF_CONFIG': json.dumps({
            'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': 1}})},
        cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True, timeout=120).stdout
    assert printed == '2\n'


def test_a_name_server_that_is_down_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: time.sleep(60))
    start = time.monotonic()
    found = placement.resolve({'a', 'b', 'c'}, timeout_secs=0.1)
    assert time.monotonic() - start < 5
    assert {str(error) for error in found.values()} == {'no answer within 0.1 s'}
