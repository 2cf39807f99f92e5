"""Defines `NetworkWeights`, the common type of all readers and writers of weights."""
import dataclasses
from typing import Any
from typing import Dict
from typing import Optional
from typing import Tuple

# Global step of weights without a known one. 0 would mean an untrained network.
UNKNOWN_STEP = 1


@dataclasses.dataclass(frozen=True)
class NetworkWeights:
    """The weights of one network.

    Attributes:
      model_name: name of the network, one of `model_builder_factory.MODEL_NAMES`.
      num_classes: number of classes of the classifier, including a background class.
      values: dict of variable name, relative to the network's scope -> float32 array.
      averages: the moving averages of `values`, or None if there is only one kind of weights.
      normalization: see `model_builder_factory.get_model_builder`.
      class_names: one name per class, or empty.
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
        """Returns the averages if there are any and `enable_ema` is true, else the values."""
        return self.averages if enable_ema and self.averages else self.values
