"""Image sizes: their notation in flags and JSON files, and the tuple that the code uses."""
import re
from typing import NamedTuple
from typing import Union

# Notation in flags and JSON files: an int for a square, else a string such as '224x288', height
# first.
WrittenSize = Union[int, str]
_TEXT = re.compile(r'(-?\d+)(?:x(-?\d+))?', re.ASCII)


class ImageSize(NamedTuple):
    """Height and width of images in pixels."""
    height: int
    width: int

    @classmethod
    def of(cls, size):
        """Returns `size` as an `ImageSize`.

        Args:
          size: a pair (height, width), a `WrittenSize`, or a string such as '224'.

        Raises:
          ValueError: `size` is a string that is not a size.
        """
        if isinstance(size, str):
            match = _TEXT.fullmatch(size)
            if not match:
                raise ValueError(
                    'neither a number nor HEIGHTxWIDTH; write it like 224 or 224x288')
            return cls(int(match[1]), int(match[2] or match[1]))
        return cls(size, size) if isinstance(size, int) else cls(*size)

    @property
    def written(self):
        """The size as a `WrittenSize`."""
        return self.height if self.height == self.width else f'{self.height}x{self.width}'

    def __str__(self):
        return str(self.written)


def is_written(value):
    """Returns whether a JSON value is a `WrittenSize`; True and False are not."""
    if not isinstance(value, str):
        return type(value) is int
    return bool(_TEXT.fullmatch(value))
