"""Draws a contact sheet of a dataset: some images of each class beside the class name."""
import io

from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

THUMBNAIL_SIZE = 96    # pixels, height and width
IMAGES_PER_CLASS = 6
MAX_CLASSES = 60
GAP = 4
NAME_WIDTH = 220
FONT_SIZE = 14
# File names in the system's font directories; the first two fonts have Chinese glyphs.
FONTS = ('NotoSansCJK-Regular.ttc', 'wqy-zenhei.ttc', 'DejaVuSans.ttf', 'arial.ttf')


def thumbnail(image):
    """Returns a Pillow image, scaled to fit THUMBNAIL_SIZE, as the bytes of a JPEG file."""
    # ImageOps.contain would shrink an image of 8000 x 10 pixels to a height of 0.
    scale = THUMBNAIL_SIZE / max(image.size)
    size = [max(1, round(scale * side)) for side in image.size]
    image = image.convert('RGB').resize(size, Image.BICUBIC)
    file = io.BytesIO()
    image.save(file, 'JPEG')
    return file.getvalue()


def chosen_classes(num_classes):
    """Returns the class indices on the sheet: all, or MAX_CLASSES evenly spaced ones."""
    if num_classes <= MAX_CLASSES:
        return list(range(num_classes))
    step = (num_classes - 1) / (MAX_CLASSES - 1)
    return [round(index * step) for index in range(MAX_CLASSES)]


def draw(rows):
    """Returns the sheet as a Pillow image.

    Args:
        rows: list of (class name, list of its thumbnails as bytes of JPEG files).
    """
    cell = THUMBNAIL_SIZE + GAP
    sheet = Image.new('RGB', (NAME_WIDTH + IMAGES_PER_CLASS * cell + GAP, len(rows) * cell + GAP),
                      'white')
    pen, font = ImageDraw.Draw(sheet), load_font(FONT_SIZE)
    for row, (text, files) in enumerate(rows):
        top = GAP + row * cell
        _write(pen, (GAP, top + GAP), text, font)
        for column, file in enumerate(files):
            sheet.paste(Image.open(io.BytesIO(file)), (NAME_WIDTH + column * cell, top))
    return sheet


def load_font(size):
    """Returns the first installed font of FONTS, or Pillow's built-in font of a fixed size.

    Args:
        size: in pixels.
    """
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default()


def drawable(text, font):
    """Returns the text on one line; escapes characters that Pillow's built-in font lacks."""
    text = ' '.join(text.splitlines())
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    # Pillow's built-in font has only Latin-1.
    return text.encode('latin-1', 'backslashreplace').decode('latin-1')


def _write(pen, corner, text, font):
    """Draws a name, wrapped into at most as many lines as fit beside the thumbnails."""
    lines = ['']
    for letter in drawable(text, font):
        if pen.textlength(lines[-1] + letter, font=font) > NAME_WIDTH - 2 * GAP:
            lines.append('')
        lines[-1] += letter
    num_lines = (THUMBNAIL_SIZE - GAP) // (FONT_SIZE + GAP)
    pen.multiline_text(corner, '\n'.join(lines[:num_lines]), 'black', font, spacing=GAP)
