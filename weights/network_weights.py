"""The weights of a network, wherever they are from: what readers give and writers take."""
import dataclasses
from typing import Any
from typing import Dict
from typing import Optional
from typing import Tuple

# The global step of weights that do not say theirs: 0 is that of a network without training.
UNKNOWN_STEP = 1


@dataclasses.dataclass(frozen=True)
class NetworkWeights:
    """The weights of one network.

    Attributes:
      model_name: the network, one of `model_builder_factory.MODEL_NAMES`.
      num_classes: of its classifier, a background class included.
      values: variable's name below the network's scope -> float32 array.
      averages: the moving averages of `values`, or None where there is one kind of weights only.
      normalization: see `model_builder_factory.get_model_builder`.
      class_names: one a class, or empty.
      step: the global step.
    """
    model_name: str
    num_classes: int
    values: Dict[str, Any]
    averages: Optional[Dict[str, Any]] = None
    normalization: Optional[str] = None
    class_names: Tuple[str, ...] = ()
    step: int = UNKNOWN_STEP

    def best(self, enable_ema=True):
        """The averages, where there are any and `enable_ema` says so; else the values."""
        return self.averages if enable_ema and self.averages else self.values
