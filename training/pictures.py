"""Pictures of numbers and of images, drawn with Pillow: what TensorBoard is to show."""
import io
import math

import numpy as np
from PIL import Image
from PIL import ImageDraw

from dataset import contact_sheet

GAP = 2                # pixels between images
CELL = 30              # pixels, height and width of a cell of the confusion matrix
MAX_NAME_WIDTH = 150
FONT_SIZE = 11
# From white to this, the more images of a class were taken for the other.
_RIGHT, _WRONG = np.array([33, 102, 172]), np.array([178, 24, 43])
JPEG_QUALITY = 90


def grid(images):
    """Images side by side, in about as many rows as columns, as a Pillow image.

    Args:
      images: uint8 [count, height, width, 3].
    """
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full([rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3], 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top:top + height, left:left + width] = image
    return Image.fromarray(sheet)


def confusion(matrix, names):
    """A confusion matrix as a Pillow image: the share of a class in the color of its row's cells.

    Args:
      matrix: [classes, classes], images of the row's class that were taken for the column's.
      names: of the classes.
    """
    num_classes, font = len(matrix), contact_sheet.load_font(FONT_SIZE)
    labels = [_label(name, font) for name in names]
    margin = max(label.width for label in labels) + 2 * GAP
    size = margin + num_classes * CELL + GAP
    picture = Image.new('RGB', (size, size), 'white')
    pen = ImageDraw.Draw(picture)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for row, label in enumerate(labels):
        place = margin + row * CELL
        picture.paste(label, (margin - GAP - label.width, place))
        picture.paste(label.transpose(Image.ROTATE_90), (place, margin - GAP - label.width))
        for column in range(num_classes):
            color, share = _RIGHT if row == column else _WRONG, shares[row, column]
            # The root, since single mistakes are to be seen.
            fill = tuple((255 - (255 - color) * math.sqrt(share)).astype(int))
            left = margin + column * CELL
            pen.rectangle([left, place, left + CELL - 1, place + CELL - 1], fill)
            if matrix[row, column]:
                text = f'{int(matrix[row, column])}'
                pen.text((left + (CELL - pen.textlength(text, font)) // 2,
                          place + (CELL - FONT_SIZE) // 2), text,
                         'white' if share > 0.4 else 'black', font)
    return picture


def _label(name, font):
    """A picture of a class's name, as high as a cell, cut where it is too wide."""
    text = contact_sheet.drawable(name, font)
    pen = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    while pen.textlength(text, font) > MAX_NAME_WIDTH:
        text = text[:-1]
    label = Image.new('RGB', (int(pen.textlength(text, font)) + 1, CELL), 'white')
    ImageDraw.Draw(label).text((0, (CELL - FONT_SIZE) // 2), text, 'black', font)
    return label


def encode(picture, file_format='PNG'):
    """The bytes of a Pillow image as a file of that format."""
    file = io.BytesIO()
    picture.save(file, file_format, **({'quality': JPEG_QUALITY} if file_format == 'JPEG' else {}))
    return file.getvalue()
