"""How many values one message has. Standard library only: the memory estimate counts these messages too."""

MESSAGE_VALUES = 1 << 24
"""Values in one message of pseudogradients, or of gradients between replicas, about; 64 MB in float32. A tensor that
cannot be cut may be larger."""
OWNER_MESSAGE_VALUES = 1 << 22
"""Values in one message of matrices to their owners or from them, about: 16 MB of gradients. Latency is small beside
that already, and smaller messages overlap better with the work beside them."""
