"""What a file system refuses, and files that are there as a whole or not at all."""
import errno
import os

import pytest
import tensorflow.compat.v1 as tf

import storage
from user_error import UserError


def test_what_is_refused_of_a_file_that_has_no_name_any_more_is_a_sentence():
    with pytest.raises(UserError, match='^No space left on device: make room'):
        with storage.readable_errors():
            with open('/dev/full', 'w') as file:
                file.write('x')


@pytest.mark.parametrize('error', [
    OSError(errno.EROFS, os.strerror(errno.EROFS), '/data/x'),
    tf.errors.UnknownError(None, None, f'/data/x; {os.strerror(errno.EROFS)}')])
def test_the_file_that_is_refused_is_named(error):
    assert str(storage.described(error)).startswith(
        '/data/x; Read-only file system: correct the rights')
