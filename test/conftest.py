"""What the tests share: real images, and the reference implementations' figures."""
import fcntl
import os
import re
import zipfile

import pytest

# Before TensorFlow is loaded: its greetings would drown the report.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import forked_programs
from tensorflow.python.util import deprecation

from common.wheels import fetch_wheel
from dataset import digits

# Without npu_bridge, main.py refuses them: the tests run where CANN's set_env.sh was sourced, too.
for name in ('ASCEND_OPP_PATH', 'ASCEND_TOOLKIT_HOME', 'ASCEND_HOME_PATH'):
    os.environ.pop(name, None)


def pytest_addoption(parser):
    parser.addoption('--regenerate_goldens', action='store_true',
                     help="rewrite test/golden/own and the generated tables of docs/")


@pytest.fixture(scope='session')
def regenerates_goldens(request):
    """Whether figures of our own are to be rewritten in place of compared."""
    return request.config.getoption('--regenerate_goldens')


@pytest.fixture(scope='session', autouse=True)
def silent_deprecations():
    """Graphs are built as in a program, which does not look for deprecated arguments."""
    with deprecation.silence():
        yield


@pytest.fixture(scope='session')
def programs():
    """What runs programs without importing TensorFlow each time; see `forked_programs`."""
    forked = forked_programs.ForkedPrograms()
    yield forked
    forked.close()


@pytest.fixture(scope='session')
def golden_dir():
    """Path of test/golden."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), 'golden')


@pytest.fixture(scope='session')
def shared_dir(tmp_path_factory):
    """Path of a folder that all workers of this run (pytest-xdist) have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session')
def download_lock(shared_dir):
    """A file for `fcntl.flock`: one worker makes what the others wait for."""
    return shared_dir / 'lock'


@pytest.fixture(scope='session')
def digits_dir(shared_dir, download_lock):
    """Path of the sample data, as str. Not to be written to."""
    path = str(shared_dir / 'digits')
    with open(download_lock, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        digits.make(path)
    return path


@pytest.fixture(scope='session')
def photos(download_lock):
    """The 20 photographs of ImageNet in foolbox: list of (name, JPEG bytes, class in 0..999)."""
    with open(download_lock, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wheel_path = fetch_wheel('foolbox==3.3.4')
    with zipfile.ZipFile(wheel_path) as wheel:
        matches = [re.fullmatch(r'foolbox/data/(imagenet_\d\d_(\d+)\.jpg)', name)
                   for name in sorted(wheel.namelist())]
        return [(match.group(1), wheel.read(match.group()), int(match.group(2)))
                for match in matches if match]


@pytest.fixture
def check_operations(golden_dir):
    """check_operations(types): fails for an operation type that a device may not take."""
    with open(os.path.join(golden_dir, 'npu_operations.txt')) as file:
        known = {line.strip() for line in file if not line.startswith('#')}

    def check(types):
        unknown = sorted(set(types) - known)
        assert not unknown, (
            f'{unknown} are new in this graph: look up whether CANN takes them onto a device '
            'without a condition, and add them to golden/npu_operations.txt; otherwise compute it '
            'differently.')
    return check
