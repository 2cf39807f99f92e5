"""Pictures of numbers and of images, drawn with Pillow: what TensorBoard is to show."""
import io
import math

import numpy as np
from PIL import Image
from PIL import ImageDraw

from dataset import contact_sheet

GAP = 2                # pixels between images
CELL = 30              # pixels, height and width of a cell of the confusion matrix
NAME_WIDTH = 150
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
    """A confusion matrix as a Pillow image: a row for each class, the share in the colour.

    Args:
      matrix: [classes, classes], images of the row's class that were taken for the column's.
      names: of the classes.
    """
    num_classes = len(matrix)
    size = NAME_WIDTH + num_classes * CELL + GAP
    picture = Image.new('RGB', (size, size), 'white')
    pen, font = ImageDraw.Draw(picture), contact_sheet.load_font(FONT_SIZE)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for row in range(num_classes):
        place = NAME_WIDTH + row * CELL
        label, width = _label(names[row], font)
        picture.paste(label, (NAME_WIDTH - GAP - width, place))
        picture.paste(label.transpose(Image.ROTATE_90), (place, NAME_WIDTH - GAP - label.width))
        for column in range(num_classes):
            colour, share = _RIGHT if row == column else _WRONG, shares[row, column]
            # The root, since single mistakes are to be seen.
            fill = tuple((255 - (255 - colour) * math.sqrt(share)).astype(int))
            left = NAME_WIDTH + column * CELL
            pen.rectangle([left, place, left + CELL - 1, place + CELL - 1], fill)
            if matrix[row, column]:
                text = f'{int(matrix[row, column])}'
                pen.text((left + (CELL - pen.textlength(text, font)) // 2,
                          place + (CELL - FONT_SIZE) // 2), text,
                         'white' if share > 0.4 else 'black', font)
    return picture


def _label(name, font):
    """A picture of a class's name, cut where there is no more room, and the width of the text."""
    label = Image.new('RGB', (NAME_WIDTH - 2 * GAP, CELL), 'white')
    pen = ImageDraw.Draw(label)
    text = contact_sheet.drawable(name, font)
    while pen.textlength(text, font) > label.width:
        text = text[:-1]
    pen.text((0, (CELL - FONT_SIZE) // 2), text, 'black', font)
    return label, int(pen.textlength(text, font)) + 1


def encode(picture, file_format='PNG'):
    """The bytes of a Pillow image as a file of that format."""
    file = io.BytesIO()
    picture.save(file, file_format, **({'quality': JPEG_QUALITY} if file_format == 'JPEG' else {}))
    return file.getvalue()
