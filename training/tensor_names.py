"""The tensors that hooks look up in the training graph, by name."""
from tensorflow.python.training import training_util

LOSS = 'loss'
CROSS_ENTROPY = 'cross_entropy'
TOP_1 = 'top_1'
LEARNING_RATE = 'learning_rate'
# The global step after the step that was run: steps that loss scaling skipped are not in it.
STEP = 'step_after'
# What a progress line shows.
PROGRESS = (LOSS, CROSS_ENTROPY, TOP_1, LEARNING_RATE)

# Half of each gradient's squared norm, a vector. A collection of the same name has its variables'
# names.
GRADIENT_SQUARES = 'gradient_squares'

# Scopes of what TensorBoard is shown.
SUMMARIES = 'watched/'
SCALARS = SUMMARIES + 'scalars/'
ROUTING = SUMMARIES + 'routing/'
IMAGES = SUMMARIES + 'images'


def global_step_read():
    """Returns the tensor by which TensorFlow's own hooks read the global step.

    An NPU compiles a graph for each set of fetches: another tensor would be another graph.
    """
    return training_util._get_or_create_global_step_read()    # TensorFlow 1.15
