"""What a file system refuses, and files that are there as a whole or not at all."""
import errno
import os

import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.files import described
from common.files import readable_errors
from common.files import renamed_when_whole
from common.files import whole_file


def test_what_is_refused_of_a_file_that_has_no_name_any_more_is_a_sentence():
    with pytest.raises(UserError, match='^No space left on device: make room'):
        with readable_errors():
            with open('/dev/full', 'w') as file:
                file.write('x')


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    path.write_text('earlier')
    with pytest.raises(KeyboardInterrupt):
        with whole_file(str(path)) as file:
            file.write('half of it')
            raise KeyboardInterrupt
    assert path.read_text() == 'earlier' and os.listdir(tmp_path) == ['file']
    with whole_file(str(path)) as file:
        file.write('Käse')
        assert path.read_text() == 'earlier'
    assert path.read_bytes() == 'Käse'.encode() and os.listdir(tmp_path) == ['file']


def test_a_temporary_file_may_lie_in_another_folder(tmp_path):
    (tmp_path / 'work').mkdir()
    path = tmp_path / 'file'
    with pytest.raises(KeyboardInterrupt):
        with renamed_when_whole(str(path), str(tmp_path / 'work')) as partial_path:
            with open(partial_path, 'w') as file:
                file.write('half of it')
            assert os.listdir(tmp_path / 'work') == ['file.tmp']
            raise KeyboardInterrupt
    assert not os.listdir(tmp_path / 'work') and not path.exists()
    with renamed_when_whole(str(path), str(tmp_path / 'work')) as partial_path:
        with open(partial_path, 'w') as file:
            file.write('whole')
    assert not os.listdir(tmp_path / 'work') and path.read_text() == 'whole'


@pytest.mark.parametrize('error', [
    OSError(errno.EROFS, os.strerror(errno.EROFS), '/data/x'),
    tf.errors.UnknownError(None, None, f'/data/x; {os.strerror(errno.EROFS)}')])
def test_the_file_that_is_refused_is_named(error):
    assert str(described(error)).startswith(
        '/data/x; Read-only file system: correct the rights')
