"""Names of the tensors that hooks look up in the training graph."""
from tensorflow.python.training import training_util

LOSS = 'loss'
CROSS_ENTROPY = 'cross_entropy'
TOP_1 = 'top_1'
LEARNING_RATE = 'learning_rate'
# The global step after a session.run. It excludes steps that loss scaling skipped.
STEP = 'step_after'
# The tensors of a progress line.
PROGRESS = (LOSS, CROSS_ENTROPY, TOP_1, LEARNING_RATE)

# A vector: half the squared norm of each gradient. A collection of the same name lists the names of
# the variables in that order.
GRADIENT_SQUARES = 'gradient_squares'

# Scopes of the tensors that are written as TensorBoard summaries.
SUMMARIES = 'watched/'
SCALARS = SUMMARIES + 'scalars/'
ROUTING = SUMMARIES + 'routing/'
IMAGES = SUMMARIES + 'images'


def global_step_read():
    """Returns the tensor that TensorFlow's own hooks fetch to read the global step.

    An NPU compiles one graph for each set of fetches, so another tensor would cause another
    compilation.
    """
    return training_util._get_or_create_global_step_read()    # private in TensorFlow 1.15
