"""The photographs of the benchmarks: 20 ImageNet images from the PyPI wheel foolbox 3.3.4."""
import io
import re
import zipfile

from PIL import Image

from common.wheels import fetch_wheel

_REQUIREMENT = 'foolbox==3.3.4'
_MEMBER = r'foolbox/data/imagenet_\d\d_\d+\.jpg'


def load():
    """Returns the photographs, a list of RGB PIL images, most of them 512 x 512 pixels.

    Raises:
        UserError: the wheel cannot be downloaded.
    """
    with zipfile.ZipFile(fetch_wheel(_REQUIREMENT)) as wheel:
        files = [wheel.read(name) for name in sorted(wheel.namelist())
                 if re.fullmatch(_MEMBER, name)]
    return [Image.open(io.BytesIO(file)).convert('RGB') for file in files]
