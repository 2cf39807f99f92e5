"""The rank table: the JSON file by which the ranks of a job find each other's devices.

HCCL reads two forms, "server_list" and the older "group_list". Both list the devices of all servers
with their ranks and network addresses. See docs/npu_bridge.md, section 10.
"""
import atexit
import itertools
import json
import os
import re
import reprlib
import tempfile

from absl import logging

from common import json_files
from common.errors import UserError
from common.paths import check_input_file

# Alternative that error messages about NPUs offer.
WITHOUT_NPUS = 'pass --accelerator=stock to run without NPUs'
# hccn_tool's settings of this server's devices, with lines such as address_0=192.168.100.101.
HCCN_FILE = '/etc/hccn.conf'
_ADDRESS = re.compile(r'\s*address_(\d+)\s*=\s*(\S+)\s*')


def check(path, world_size):
    """Checks that a rank table lists each rank from 0 to world_size - 1 once.

    A table in neither form is accepted with a warning, since a later release may read it.

    Raises:
      UserError: the file cannot be read, is not a rank table, or lists other ranks.
    """
    cure = f'generate it with hccl_tools for RANK_SIZE={world_size}, or {WITHOUT_NPUS}'
    try:
        check_input_file(path, 'RANK_TABLE_FILE')
    except UserError as error:
        raise UserError(f'{error} Or {WITHOUT_NPUS}.') from error
    table = json_files.read(path, cure, name='RANK_TABLE_FILE')
    try:
        servers = _servers(table)
    except ValueError as error:
        raise UserError(f'RANK_TABLE_FILE={path}: not a rank table ({error}); {cure}.') from error
    if servers is None:
        logging.warning('RANK_TABLE_FILE=%s: neither a server_list nor a group_list; its ranks are '
                        'not checked.', path)
        return
    ranks = sorted(itertools.chain.from_iterable(servers))
    if len(ranks) != world_size or ranks != list(range(world_size)):
        raise UserError(f'RANK_TABLE_FILE={path}: lists the ranks {reprlib.repr(ranks)}, '
                        f'not 0 to {world_size - 1}; {cure}.')


def ranks_beside(path, rank):
    """Returns the number of ranks on the server of `rank`, at least 1.

    Args:
      path: path of a rank table that `check` accepts.
      rank: int.

    Returns:
      int, or None if the table does not list `rank`.
    """
    servers = _servers(json_files.read(path, 'generate it again', name='RANK_TABLE_FILE')) or ()
    return next((len(ranks) for ranks in servers if rank in ranks), None)


def _servers(table):
    """Returns the list of ranks of each server of a table, or None if it has neither form.

    Raises:
      ValueError: a part of the table is missing or has the wrong type.
    """
    if 'server_list' in _typed(table, dict, 'the file'):
        return [[_rank(_typed(device, dict, 'device')) for device in _part(server, 'device')]
                for server in _places(table, 'server_list')]
    if 'group_list' not in table:
        return None
    instances = [_typed(instance, dict, 'instance_list')
                 for group in _places(table, 'group_list')
                 for instance in _part(group, 'instance_list')]
    servers, num_ranks = {}, 0
    for index, instance in enumerate(instances):
        if any('rank_id' in each for each in instances):
            ranks = [_rank(instance)]
        else:
            # ModelArts writes a pod_name instead; ranks follow the order of the devices.
            ranks = range(num_ranks, num_ranks + len(_part(instance, 'devices')))
        num_ranks += len(ranks)
        servers.setdefault(str(instance.get('server_id', index)), []).extend(ranks)
    return list(servers.values())


def _places(table, name):
    return [_typed(place, dict, name) for place in _part(table, name)]


def _typed(value, kind, name):
    if not isinstance(value, kind):
        raise ValueError(f'{name}: {reprlib.repr(value)} is not a {kind.__name__}')
    return value


def _part(place, name):
    return _typed(place.get(name), list, name)


def _rank(device):
    text = str(device.get('rank_id'))
    if not re.fullmatch('[0-9]{1,9}', text):
        raise ValueError(f'rank_id: {reprlib.repr(text)} is not a whole number')
    return int(text)


def make_for_this_server(world_size):
    """Writes a rank table for devices 0 to world_size - 1 of this server.

    Returns:
      path of the file. The file is removed when this process exits.

    Raises:
      UserError: `HCCN_FILE` cannot be read or lacks the address of a device.
    """
    try:
        with open(HCCN_FILE, errors='replace') as file:
            matches = filter(None, map(_ADDRESS.fullmatch, file.read().splitlines()))
            addresses = {int(match.group(1)): match.group(2) for match in matches}
    except OSError as error:
        raise UserError(f'RANK_SIZE={world_size}: RANK_TABLE_FILE is not set, and {HCCN_FILE} '
                        f'cannot be read to generate one ({error.strerror}); set RANK_TABLE_FILE '
                        f'to the JSON file with the devices of the job, or {WITHOUT_NPUS}.'
                        ) from error
    missing = next((device for device in range(world_size) if device not in addresses), None)
    if missing is not None:
        raise UserError(f'RANK_SIZE={world_size}: RANK_TABLE_FILE is not set, and {HCCN_FILE} '
                        f'has no address of device {missing}; set the address with hccn_tool, set '
                        'RANK_TABLE_FILE to the JSON file with the devices of the job, or '
                        f'{WITHOUT_NPUS}.')
    devices = [{'device_id': str(device), 'device_ip': addresses[device], 'rank_id': str(device)}
               for device in range(world_size)]
    table = {'version': '1.0', 'status': 'completed', 'server_count': '1',
             'server_list': [{'server_id': '127.0.0.1', 'device': devices}]}
    with tempfile.NamedTemporaryFile(
            'w', prefix='rank_table_', suffix='.json', delete=False) as file:
        json.dump(table, file, indent=2)
    atexit.register(os.remove, file.name)
    return file.name
