"""Parses --freeze: the parts of a network that keep their initial weights."""
import dataclasses
import re
from typing import FrozenSet
from typing import Optional

CLASSIFIER = 'head/dense'
_ALL_BUT = {'all_but_head': 'head', 'all_but_classifier': CLASSIFIER}
_BLOCKS = re.compile(r'blocks_(?P<first>\d+)(-(?P<last>\d+))?')


@dataclasses.dataclass(frozen=True)
class FrozenParts:
    """The frozen parts of a network, by scope names relative to the network's scope.

    Attributes:
      parts: frozen scopes out of 'stem', 'blocks_<i>' and 'head'.
      all_but: a scope; if given, everything outside it is frozen and `parts` is empty.
    """
    parts: FrozenSet[str] = frozenset()
    all_but: Optional[str] = None

    def __contains__(self, name):
        """Returns whether a layer or variable is frozen; `name` is relative to the network's scope.
        """
        # CondConv kernels are in 'model/blocks_<i>', the other variables of a block in
        # 'blocks_<i>'.
        name = name[len('model/'):] if name.startswith('model/') else name
        if self.all_but:
            return not f'{name}/'.startswith(f'{self.all_but}/')
        return name.split('/')[0] in self.parts

    def trained(self, variables):
        """Returns the list of `variables` that are not frozen."""
        return [variable for variable in variables
                if variable.op.name.split('/', 1)[-1] not in self]


def parse(text, num_blocks):
    """Returns the `FrozenParts` described by a value of --freeze, such as 'stem,blocks_0-9'.

    Args:
      text: None or '' for no part; 'all_but_head' (the last convolution, its batch norm and the
        classifier stay trainable); 'all_but_classifier'; or a comma-separated list of 'stem',
        'head', 'blocks_<i>' and 'blocks_<first>-<last>' (inclusive).
      num_blocks: number of blocks of the network.

    Raises:
      ValueError: the text is malformed, a block does not exist, or no part is left to train.
    """
    if not text:
        return FrozenParts()
    if text in _ALL_BUT:
        return FrozenParts(all_but=_ALL_BUT[text])
    parts = set()
    for part in text.split(','):
        match = _BLOCKS.fullmatch(part)
        if part in ('stem', 'head'):
            parts.add(part)
        elif match and int(match['first']) <= int(match['last'] or match['first']) < num_blocks:
            first, last = int(match['first']), int(match['last'] or match['first'])
            parts |= {f'blocks_{index}' for index in range(first, last + 1)}
        else:
            raise ValueError(
                f'{part!r} is not a part of this network (stem, blocks_0 to '
                f'blocks_{num_blocks - 1}, head); write a list such as stem,blocks_0-9, or '
                f"{' or '.join(_ALL_BUT)}")
    if len(parts) == num_blocks + 2:
        raise ValueError('no part is left to train; remove one from the list')
    return FrozenParts(frozenset(parts))
