"""Which parts of a network keep the weights they start with: --freeze."""
import dataclasses
import re
from typing import FrozenSet
from typing import Optional

CLASSIFIER = 'head/dense'
_ALL_BUT = {'all_but_head': 'head', 'all_but_classifier': CLASSIFIER}
_BLOCKS = re.compile(r'blocks_(?P<first>\d+)(-(?P<last>\d+))?')


@dataclasses.dataclass(frozen=True)
class FrozenParts:
    """A set of parts, by the names of their scopes below the network's.

    Attributes:
      parts: of 'stem', 'blocks_<i>' and 'head'.
      all_but: a scope; if given, everything outside it is frozen and `parts` is empty.
    """
    parts: FrozenSet[str] = frozenset()
    all_but: Optional[str] = None

    def __contains__(self, name):
        """Whether a layer or variable, named from below the network's scope, is frozen."""
        # The kernels of CondConv live in 'model/blocks_<i>', the rest of a block in 'blocks_<i>'.
        name = name[len('model/'):] if name.startswith('model/') else name
        if self.all_but:
            return not f'{name}/'.startswith(f'{self.all_but}/')
        return name.split('/')[0] in self.parts

    def trained(self, variables):
        """Those of `variables` that are not frozen."""
        return [variable for variable in variables
                if variable.op.name.split('/', 1)[-1] not in self]


def parse(text, num_blocks):
    """The parts that a list such as 'stem,blocks_0-9' names.

    Args:
      text: None or '' for no part; 'all_but_head' (the last convolution, its batch norm and the
        classifier go on learning), 'all_but_classifier', or parts with commas between them: 'stem',
        'head', 'blocks_<i>' and 'blocks_<first>-<last>', the last one included.
      num_blocks: blocks that the network has.

    Raises:
      ValueError: another text, a block that does not exist, or nothing is left to train.
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
                f'{part!r} is no part of this network; its parts are stem, blocks_0 to '
                f'blocks_{num_blocks - 1} and head; write them like stem,blocks_0-9, or '
                f"{' or '.join(_ALL_BUT)}")
    if len(parts) == num_blocks + 2:
        raise ValueError('nothing is left to train; leave out a part')
    return FrozenParts(frozenset(parts))
