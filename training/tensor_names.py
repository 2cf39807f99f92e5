"""Names of the tensors that hooks look up in the training graph."""

LOSS = 'loss'
CROSS_ENTROPY = 'cross_entropy'
TOP_1 = 'top_1'
LEARNING_RATE = 'learning_rate'
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
