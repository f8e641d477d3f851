"""Drive the training loops of other frameworks; each module needs that framework, and no other."""
